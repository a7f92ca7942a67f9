data_dir = "${env.RBEE_NO_SUCH}/x"
queen { enabled = true }
hive { enabled = true }
