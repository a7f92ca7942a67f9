package rpc

// ConnectWorker is what a queen does with a connection to a hive.
var ConnectWorker = connectWorker
