// Goroutines that hold secrets by raw system calls, while the garbage collector and preemption signals are at work.
//
// goroutines N M: N goroutines, M secrets each; then the same in a child that is this program again. Prints "N*M ok".
package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
)

const (
	memfdSecret = 447
	size        = 8192
)

// One secret: made, sized, mapped, filled, read in vain through its descriptor, compared, given back.
func once(mark byte) error {
	fd, _, code := syscall.Syscall(memfdSecret, syscall.O_CLOEXEC, 0, 0)
	if code != 0 {
		return fmt.Errorf("memfd_secret: %w", code)
	}
	defer syscall.Close(int(fd))
	if err := syscall.Ftruncate(int(fd), size); err != nil {
		return fmt.Errorf("ftruncate: %w", err)
	}
	area, err := syscall.Mmap(int(fd), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	defer syscall.Munmap(area)
	for i := range area {
		if area[i] != 0 {
			return fmt.Errorf("a fresh secret is not zero")
		}
		area[i] = mark
	}
	if _, err := syscall.Read(int(fd), make([]byte, 16)); err != syscall.EINVAL {
		return fmt.Errorf("read: %v", err)
	}
	runtime.Gosched()
	for i := range area {
		if area[i] != mark {
			return fmt.Errorf("another's byte")
		}
	}
	return nil
}

func number(at int) int {
	value, err := strconv.Atoi(os.Args[at])
	if err != nil {
		panic(err)
	}
	return value
}

func main() {
	var good atomic.Int64
	var all sync.WaitGroup
	for worker := 0; worker < number(1); worker++ {
		all.Add(1)
		go func(mark byte) {
			defer all.Done()
			for i := 0; i < number(2); i++ {
				if err := once(mark); err != nil {
					fmt.Println(err)
				} else {
					good.Add(1)
				}
				if i%10 == 0 {
					runtime.GC()
				}
			}
		}(byte(worker + 1))
	}
	all.Wait()
	fmt.Println(good.Load(), "ok")
	if len(os.Args) == 3 {
		child := exec.Command("/proc/self/exe", os.Args[1], os.Args[2], "child")
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		if err := child.Run(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
}
