worker "fake" {
  config {
    token_dely = "1ms"
  }
}
