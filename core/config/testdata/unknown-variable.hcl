data_dir = enb.HOME
queen { enabled = true }
hive { enabled = true }
