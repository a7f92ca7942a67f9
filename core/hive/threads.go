package hive

// cpuWorkers returns how many workers compute with this machine's processor, those that load
// included: they share its cores.
func (h *Hive) cpuWorkers() int {
	n := 0
	for _, w := range h.all() {
		if deviceKind(w.handle.Device) == kindCPU {
			n++
		}
	}
	return n
}
