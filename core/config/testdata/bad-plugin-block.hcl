queen { enabled = true }
hive { enabled = true }
worker "CPU" {}
worker "a" {
  plugin = "../rbee-worker-a"
  sha256 = "abc"
  env    = ["TOKEN=secret"]
}
worker "b" { plugin = "rbee-catalog-b" }
catalog "c" { env = ["RBEE_PLUGIN"] }
catalog "d" { env = "HOME" }
catalog {}
