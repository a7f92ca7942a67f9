queen {
  enabled = true
}
hive {
  enabled = true
  engines {
    allow = ["npm:@node-llama-cpp/", "sha256:0123", "llama.cpp"]
  }
}
