queen {
  enabled = true
}
hive {
  enabled = true
}
wroker "cpu" {
}
