# make bench, the part that needs dm-crypt
python3 -m bench.scratch /out/scratch.json
result $?
