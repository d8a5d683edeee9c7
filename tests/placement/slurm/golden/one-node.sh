#!/bin/bash
#SBATCH --job-name=rolecall-demo-actor
#SBATCH --comment=rolecall/0123456789ab
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32768M
#SBATCH --gres=gpu:8
#SBATCH --signal=B:URG@120
#SBATCH --output=/dev/null
#SBATCH --no-requeue
#SBATCH --export=ALL

noticed=
trap noticed=yes URG
logs=/home/u/.rolecall/demo/t0/logs
output=$logs/slurm-$SLURM_JOB_ID.out
(umask 022 && mkdir -p -- "$logs") && (umask 077 && : >>"$output") && exec >>"$output" 2>&1
cd -- /home/u/project || cd /

set +vx; trap - DEBUG
export ROLECALL_RUN=0123456789ab
export ROLECALL_GUARD='<name of the guards>'
export PYTHONPATH=/home/u/project:/home/u/rolecall/src"${PYTHONPATH:+:$PYTHONPATH}"

exec 3>&1
coproc guards {
    exec srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=8 --kill-on-bad-exit=1 --input=all --mpi=none --label \
        /opt/venv/bin/python -m rolecall.guard --config-fd 0 --ordinal-from SLURM_PROCID >&3 3>&-
}
guards_pid=$! guards_stdin=${guards[1]:-2}
trap '' PIPE
cat >&$guards_stdin <<'END_OF_CONFIGURATION'
<configuration of the guards>
END_OF_CONFIGURATION

notice() {
    printf '{"role": "actor", "reason": "Slurm is about to end job %s: it has 120 s until its time limit, or another job needs its place", "seconds": 120}\n' "$SLURM_JOB_ID" >&$guards_stdin
}
trap notice URG
[[ ! $noticed ]] || notice
status=1
while kill -0 $guards_pid 2>/dev/null; do
    status=0
    wait $guards_pid || status=$?
done
if ((status)); then
    said=$(sed -nE 's/^([0-9]+: )?((srun|slurmstepd)[^ ]*: error: )/\2/p' -- "$output" | awk '!seen[$0]++' | tail -n 5 | cut -c -300)
    said=${said//$'\n'/; }
    [[ ! $said ]] || scontrol update JobId=$SLURM_JOB_ID "Comment=rolecall/0123456789ab: $said"
fi
exit $status
