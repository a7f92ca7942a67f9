worker "fake" {
  config {
    problem = env.RBEE_NO_SUCH
  }
}
