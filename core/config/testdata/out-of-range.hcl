log_level = "inf"
name      = "localhost"
bind { http_port = 70000 }
queen { enabled = true }
hive {
  enabled        = true
  slots          = 0
  context_tokens = -1
  stop_grace     = "2h"
}
