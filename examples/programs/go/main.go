// An HTTP server on the listener that handoffd passes to it. It sends READY=1, and finishes its
// requests on SIGTERM.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// The first listener is descriptor 3 (LISTEN_FDS, sd_listen_fds(3)).
	listener, err := net.FileListener(os.NewFile(3, "web"))
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "generation %s\n", os.Getenv("GENERATION"))
	})}
	ended := make(chan struct{})
	go func() {
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		<-stop
		server.Shutdown(context.Background())
		close(ended)
	}()
	report("READY=1")
	if err := server.Serve(listener); err != http.ErrServerClosed {
		log.Fatal(err)
	}
	<-ended
}

// report sends a notification to the supervisor (see sd_notify(3)).
func report(state string) {
	socket, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		log.Fatal(err)
	}
	defer socket.Close()
	socket.Write([]byte(state))
}
