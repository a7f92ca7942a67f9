worker "fake" {
  config {
    tokens = 2000
  }
}
