data_dri = "/var/lib/rbee"
queen { enabled = true }
hive {
  enabled = true
  slot    = 4
}
