"""What a configuration would do on its cluster, found out without the cluster: plans, and compiling in simulation."""
