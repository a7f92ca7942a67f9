data_dir = enb.RBEE_NO_SUCH
queen { enabled = true }
hive { enabled = true }
