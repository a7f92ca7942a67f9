log_json = "perhaps"
queen { enabled = true }
hive {
  enabled    = true
  slots      = "many"
  threads    = 1.5
  stop_grace = 30
}
bind { http_port = [7833] }
