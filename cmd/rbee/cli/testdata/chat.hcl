deployment "chat" {
  model    = "rbee-tiny"
  replicas = 2
}
