catalog "fake" {
  config {
    dir = "/no/such/folder"
  }
}
