worker "fake" {
  config {
    tokens = "x${env.SECRET}"
  }
}
