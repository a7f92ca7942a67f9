package pluginhost

import "syscall"

func changedAt(st *syscall.Stat_t) any { return st.Ctimespec }
