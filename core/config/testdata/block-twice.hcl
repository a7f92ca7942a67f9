queen { enabled = true }
hive { enabled = true }
worker "cpu" {}
queen { enabled = true }
worker "cpu" {
  config {}
  config {}
}
