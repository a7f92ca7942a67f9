worker "fake" {
  config {
    token_delay = "${1 + 1}ms"
    hang        = []
    device { id = "fake:0" }
    device {
      id          = "fake:1"
      total_bytes = 1024
    }
  }
}
catalog "fake" {}
