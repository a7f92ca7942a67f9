log_level = "inf"
bind { http_port = 70000 }
queen { enabled = true }
hive {
  enabled        = true
  name           = "localhost"
  slots          = 0
  context_tokens = -1
  stop_grace     = "2h"
}
