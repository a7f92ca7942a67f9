worker "fake" {
  config {
    devise { id = "x" }
  }
}
