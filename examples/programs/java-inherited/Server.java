import java.io.*;
import java.net.Socket;
import java.nio.channels.*;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.*;

/**
 * A small HTTP server that accepts on the listener that it gets as descriptor 0. The listener stays
 * non-blocking, because the old and the new process share it.
 */
public class Server {
    static final ExecutorService CLIENTS = Executors.newCachedThreadPool();
    static final CountDownLatch STOPPED_ACCEPTING = new CountDownLatch(1);
    static volatile boolean stopping = false;

    public static void main(String[] arguments) throws Exception {
        Selector selector = Selector.open();
        ServerSocketChannel listener = (ServerSocketChannel) System.inheritedChannel();
        listener.configureBlocking(false);
        listener.register(selector, SelectionKey.OP_ACCEPT);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> stop(selector)));
        // The newline tells handoffd that the server is ready.
        try (OutputStream ready = new FileOutputStream("/proc/self/fd/9")) {
            ready.write('\n');
        }
        while (!stopping) {
            selector.select();
            selector.selectedKeys().clear();
            SocketChannel client;
            while ((client = listener.accept()) != null) {
                Socket socket = client.socket();
                CLIENTS.execute(() -> serve(socket));
            }
        }
        STOPPED_ACCEPTING.countDown();
    }

    /** Stops accepting, and then waits until the open requests are answered. */
    static void stop(Selector selector) {
        try {
            stopping = true;
            selector.wakeup();
            STOPPED_ACCEPTING.await();
            CLIENTS.shutdown();
            CLIENTS.awaitTermination(30, TimeUnit.SECONDS);
        } catch (InterruptedException error) {
            error.printStackTrace();
        }
    }

    /** Answers the requests of one client. Each reply ends its connection. */
    static void serve(Socket client) {
        try (client) {
            var input = new BufferedReader(new InputStreamReader(client.getInputStream()));
            String line = input.readLine();
            while (line != null && !line.isEmpty()) {
                line = input.readLine();
            }
            String body = "generation " + System.getenv("GENERATION") + "\n";
            String head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: "
                + body.length() + "\r\n\r\n";
            client.getOutputStream().write((head + body).getBytes(StandardCharsets.US_ASCII));
            client.shutdownOutput();
        } catch (IOException error) {
            error.printStackTrace();
        }
    }
}
