# make bench, the part that needs a whole cluster: how long a revocation takes
python3 -m bench.revocation /out/revocation.json
result $?
