"""Many devices and processes: sharding.py alone places arrays; collectives.py reduces over devices;
processes.py connects and stops the processes of a run."""
