worker "fake" {
  config {
    token_delay = "soon"
    tokens      = 2000
    hang        = ["start", "launch"]
    device { id = "a" }
    device {
      id = "a"
    }
  }
}
