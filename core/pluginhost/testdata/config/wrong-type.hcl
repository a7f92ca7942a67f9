worker "fake" {
  config {
    tokens = "many"
    hang   = { a = 1 }
    device {}
  }
}
