bind { address = "my-desk" }
queen { enabled = true }
hive { enabled = true }
