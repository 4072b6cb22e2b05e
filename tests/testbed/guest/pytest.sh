# The cluster suite inside the guest. ARGS: pytest's arguments, with ',' for spaces.
export CI="$CI_RUN"
slurmctld -V
python3 -m pytest ${ARGS//,/ } -p no:cacheprovider --junitxml=/out/cluster.xml
result $?
