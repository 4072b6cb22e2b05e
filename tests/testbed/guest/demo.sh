# make demo
python3 -m tests.testbed.demo
result $?
