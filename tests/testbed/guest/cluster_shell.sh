# make shell: a terminal as root inside a running cluster
python3 -m tests.testbed.shell </dev/tty0 >/dev/tty0 2>&1
result $?
