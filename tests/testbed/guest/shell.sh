# A shell in a bare guest (no cluster)
setsid -c bash -l </dev/tty0 >/dev/tty0 2>&1
result 0
