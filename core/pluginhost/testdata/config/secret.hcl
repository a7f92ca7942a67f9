worker "fake" {
  config {
    secret = ["do-not-show"]
  }
}
