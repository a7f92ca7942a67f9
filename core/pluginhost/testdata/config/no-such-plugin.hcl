worker "fakee" {}
catalog "mine" {
  plugin = "rbee-catalog-fakes"
}
