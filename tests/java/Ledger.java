import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.File;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.StandardCopyOption;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.BitSet;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;
import java.util.concurrent.locks.LockSupport;
import java.util.zip.CRC32;
import java.util.zip.CRC32C;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.KafkaFuture;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.TopicPartitionReplica;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * An independent witness of what a broker promised: it writes numbered records whose bytes follow from (seed, partition, number), keeps a
 * ledger of those that the broker acknowledged and at which offset, and later proves that each of them is there once, in order, equal.
 *
 * <p>The ledger holds only what was acknowledged. A record that the broker wrote without acknowledging it (it died in between) may be found
 * by a later read, but only whole and in its place.
 *
 * <p>Value: i32 magic, i32 partition, i64 number, i32 payload length, i32 CRC-32C of the payload, payload. Exit codes: 0 proved, 1 not, 2 usage.
 */
public final class Ledger {
    private static final int MAGIC = 0x4c444752;
    private static final int HEADER_BYTES = 24;
    private static final ObjectMapper JSON = new ObjectMapper();

    /** Acknowledged records of one partition: runs in which number and offset both rise by one. */
    static final class Account {
        final List<long[]> runs = new ArrayList<>(); // first number, last number, first offset
        long acknowledged;
        long crc32Sum;
        long valueBytes;
        long next;

        synchronized void add(long number, long offset, long crc32, int bytes) {
            long[] last = runs.isEmpty() ? null : runs.get(runs.size() - 1);
            if (last != null && number == last[1] + 1 && offset == last[2] + (number - last[0])) {
                last[1] = number;
            } else {
                runs.add(new long[] {number, number, offset});
            }
            acknowledged++;
            crc32Sum += crc32;
            valueBytes += bytes;
        }
    }

    static final class Failed extends RuntimeException {
        Failed(String message) {
            super(message);
        }
    }

    // --- the value of a record -------------------------------------------------------------------------------------------------------

    static byte[] value(long seed, int partition, long number, int size) {
        int payload = Math.max(0, size - HEADER_BYTES);
        byte[] bytes = new byte[HEADER_BYTES + payload];
        ByteBuffer out = ByteBuffer.wrap(bytes).order(ByteOrder.BIG_ENDIAN);
        long state = seed * 0x9E3779B97F4A7C15L ^ ((long) partition << 48) ^ number * 0xD1B54A32D192ED03L;
        int at = HEADER_BYTES;
        for (; at + 8 <= bytes.length; at += 8) {
            state += 0x9E3779B97F4A7C15L;
            out.putLong(at, mix(state));
        }
        for (; at < bytes.length; at++) {
            state += 0x9E3779B97F4A7C15L;
            bytes[at] = (byte) mix(state);
        }
        CRC32C crc = new CRC32C();
        crc.update(bytes, HEADER_BYTES, payload);
        out.putInt(0, MAGIC).putInt(4, partition).putLong(8, number).putInt(16, payload).putInt(20, (int) crc.getValue());
        return bytes;
    }

    private static long mix(long z) {
        z = (z ^ (z >>> 30)) * 0xBF58476D1CE4E5B9L;
        z = (z ^ (z >>> 27)) * 0x94D049BB133111EBL;
        return z ^ (z >>> 31);
    }

    private static long crc32(byte[] value) {
        CRC32 crc = new CRC32();
        crc.update(value, 0, value.length);
        return crc.getValue();
    }

    // --- the ledger file -------------------------------------------------------------------------------------------------------------

    static final class Book {
        String topic;
        long seed;
        int size;
        long keys;
        long failed;
        /** All records of a partition share one payload: cheap to make and to compare, for measuring. */
        boolean light;
        Account[] accounts;

        private byte[][] templates;

        byte[] value(int partition, long number) {
            if (!light) {
                return Ledger.value(seed, partition, number, size);
            }
            if (templates == null) {
                templates = new byte[accounts.length][];
            }
            if (templates[partition] == null) {
                templates[partition] = Ledger.value(seed, partition, 0, size);
            }
            byte[] value = templates[partition].clone();
            ByteBuffer.wrap(value).putLong(8, number);
            return value;
        }

        /** The ledger that the file holds, or a new one as the arguments say. */
        static Book open(File file, Args args) throws Exception {
            if (file.exists()) {
                return load(file);
            }
            Book book = new Book();
            book.topic = args.text("topic");
            book.seed = args.number("seed", 1);
            book.size = (int) args.number("size", 1000);
            book.keys = args.number("keys", 0);
            book.light = args.flag("light");
            book.accounts = new Account[(int) args.number("partitions", 1)];
            Arrays.setAll(book.accounts, p -> new Account());
            return book;
        }

        static Book load(File file) throws Exception {
            JsonNode root = JSON.readTree(file);
            Book book = new Book();
            book.topic = root.get("topic").asText();
            book.seed = root.get("seed").asLong();
            book.size = root.get("size").asInt();
            book.keys = root.get("keys").asLong();
            book.failed = root.get("failed").asLong();
            book.light = root.get("light").asBoolean();
            JsonNode partitions = root.get("partitions");
            book.accounts = new Account[partitions.size()];
            for (JsonNode node : partitions) {
                Account account = new Account();
                account.acknowledged = node.get("acknowledged").asLong();
                account.crc32Sum = node.get("crc32_sum").asLong();
                account.valueBytes = node.get("value_bytes").asLong();
                account.next = node.get("next").asLong();
                for (JsonNode run : node.get("runs")) {
                    account.runs.add(new long[] {run.get(0).asLong(), run.get(1).asLong(), run.get(2).asLong()});
                }
                book.accounts[node.get("partition").asInt()] = account;
            }
            return book;
        }

        void save(File file) throws Exception {
            ObjectNode root = JSON.createObjectNode();
            root.put("topic", topic).put("seed", seed).put("size", size).put("keys", keys).put("failed", failed).put("light", light);
            ArrayNode partitions = root.putArray("partitions");
            for (int p = 0; p < accounts.length; p++) {
                Account account = accounts[p];
                ObjectNode node = partitions.addObject();
                node.put("partition", p).put("acknowledged", account.acknowledged).put("crc32_sum", account.crc32Sum);
                node.put("value_bytes", account.valueBytes).put("next", account.next);
                ArrayNode runs = node.putArray("runs");
                for (long[] run : account.runs) {
                    runs.addArray().add(run[0]).add(run[1]).add(run[2]);
                }
            }
            File partial = new File(file.getPath() + ".partial");
            JSON.writeValue(partial, root);
            Files.move(partial.toPath(), file.toPath(), StandardCopyOption.REPLACE_EXISTING, StandardCopyOption.ATOMIC_MOVE);
        }
    }

    // --- produce ---------------------------------------------------------------------------------------------------------------------

    private static Properties producerSettings(Args args) {
        Properties p = new Properties();
        p.put("bootstrap.servers", args.text("bootstrap"));
        p.put("key.serializer", ByteArraySerializer.class.getName());
        p.put("value.serializer", ByteArraySerializer.class.getName());
        p.put("acks", args.text("acks", "all"));
        p.put("enable.idempotence", args.flag("no-idempotence") ? "false" : "true");
        p.put("compression.type", args.text("compression", "none"));
        p.put("linger.ms", args.text("linger-ms", "5"));
        p.put("batch.size", args.text("batch-size", "16384"));
        p.put("buffer.memory", "67108864");
        p.put("delivery.timeout.ms", args.text("delivery-timeout-ms", "120000"));
        p.put("request.timeout.ms", args.text("request-timeout-ms", "15000"));
        p.put("max.block.ms", args.text("delivery-timeout-ms", "120000"));
        return p;
    }

    static void produce(Args args) throws Exception {
        File file = new File(args.text("ledger"));
        Book book = Book.open(file, args);
        Properties p = producerSettings(args);
        long records = args.number("records", 1000);
        long rate = args.number("rate", 0);
        long unmeasured = args.number("unmeasured", 0);
        long stopAfterFailures = args.number("stop-after-failures", Long.MAX_VALUE);
        int[] latencies = new int[(int) Math.min(records, 20_000_000)];
        AtomicInteger done = new AtomicInteger();
        AtomicInteger measured = new AtomicInteger();
        AtomicLong measuredBytes = new AtomicLong();
        long measuredFrom = 0;
        AtomicLong failures = new AtomicLong();
        AtomicReference<Exception> firstFailure = new AtomicReference<>();
        long before = Arrays.stream(book.accounts).mapToLong(a -> a.valueBytes).sum();
        long start = System.nanoTime();
        KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(p);
        try {
            for (long i = 0; i < records && failures.get() < stopAfterFailures; i++) {
                int partition = (int) (i % book.accounts.length);
                Account account = book.accounts[partition];
                long number = account.next++;
                byte[] value = book.value(partition, number);
                byte[] key = book.keys > 0 ? ByteBuffer.allocate(8).putLong(number % book.keys).array() : null;
                long sent = System.nanoTime();
                boolean timed = i >= unmeasured;
                if (i == unmeasured) {
                    measuredFrom = sent;
                }
                producer.send(new ProducerRecord<>(book.topic, partition, key, value), (meta, error) -> {
                    if (error != null) {
                        failures.incrementAndGet();
                        firstFailure.compareAndSet(null, error);
                        return;
                    }
                    account.add(number, meta.offset(), book.light ? 0 : crc32(value), value.length);
                    done.incrementAndGet();
                    if (timed) {
                        measuredBytes.addAndGet(value.length);
                    }
                    int at = timed ? measured.getAndIncrement() : latencies.length;
                    if (at < latencies.length) {
                        latencies[at] = (int) ((System.nanoTime() - sent) / 1000);
                    }
                });
                if (rate > 0) {
                    long due = start + (i + 1) * 1_000_000_000L / rate;
                    for (long now = System.nanoTime(); now < due; now = System.nanoTime()) {
                        LockSupport.parkNanos(due - now);
                    }
                }
            }
        } catch (RuntimeException e) {
            failures.incrementAndGet();
            firstFailure.compareAndSet(null, e);
        } finally {
            producer.close(Duration.ofMillis(args.number("delivery-timeout-ms", 120_000) + 5_000));
        }
        long end = System.nanoTime();
        double seconds = (end - start) / 1e9;
        book.failed += failures.get();
        book.save(file);
        long bytes = Arrays.stream(book.accounts).mapToLong(a -> a.valueBytes).sum() - before;
        int count = Math.min(measured.get(), latencies.length);
        Arrays.sort(latencies, 0, count);
        ObjectNode out = JSON.createObjectNode();
        out.put("acknowledged", done.get()).put("failed", failures.get()).put("bytes", bytes).put("seconds", seconds);
        out.put("mb_per_s", measuredBytes.get() / 1e3 / ((end - measuredFrom) / 1e6));
        out.put("latency_p50_ms", percentile(latencies, count, 0.50)).put("latency_p99_ms", percentile(latencies, count, 0.99));
        out.put("latency_max_ms", percentile(latencies, count, 1.0));
        if (firstFailure.get() != null) {
            out.put("first_failure", firstFailure.get().toString());
        }
        System.out.println(out);
        if (failures.get() > 0 && !args.flag("tolerate-failures")) {
            throw new Failed(failures.get() + " records were not acknowledged; first: " + firstFailure.get());
        }
    }

    private static double percentile(int[] sorted, int count, double q) {
        return count == 0 ? -1 : sorted[(int) Math.min(count - 1, Math.floor(q * count))] / 1000.0;
    }

    record Sent(Account account, long number, byte[] value, Future<RecordMetadata> answer) {}

    private static List<Sent> sendAll(KafkaProducer<byte[], byte[]> producer, Book book, long records) {
        List<Sent> sent = new ArrayList<>();
        for (long i = 0; i < records; i++) {
            int partition = (int) (i % book.accounts.length);
            Account account = book.accounts[partition];
            long number = account.next++;
            byte[] value = book.value(partition, number);
            sent.add(new Sent(account, number, value, producer.send(new ProducerRecord<>(book.topic, partition, null, value))));
        }
        producer.flush();
        return sent;
    }

    /**
     * Writes {@code --transactions} of {@code --per-transaction} records; each {@code --abort-every}th is aborted, and with {@code --leave-open}
     * one more is neither committed nor aborted when this process ends. The ledger gets only what was committed.
     */
    static void transact(Args args) throws Exception {
        File file = new File(args.text("ledger"));
        Book book = Book.open(file, args);
        Properties p = producerSettings(args);
        p.put("transactional.id", args.text("transactional-id"));
        long records = args.number("per-transaction", 100);
        long abortEvery = args.number("abort-every", Long.MAX_VALUE);
        long committed = 0, uncommitted = 0;
        KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(p);
        producer.initTransactions();
        for (long t = 1; t <= args.number("transactions", 1); t++) {
            producer.beginTransaction();
            List<Sent> sent = sendAll(producer, book, records);
            if (t % abortEvery == 0) {
                producer.abortTransaction();
                uncommitted += sent.size();
                continue;
            }
            producer.commitTransaction();
            committed += sent.size();
            for (Sent s : sent) {
                s.account.add(s.number, s.answer.get().offset(), crc32(s.value), s.value.length);
            }
        }
        if (args.flag("leave-open")) {
            producer.beginTransaction();
            for (Sent s : sendAll(producer, book, records)) {
                s.answer.get();
                uncommitted++;
            }
        } else {
            producer.close();
        }
        book.save(file);
        System.out.println(JSON.createObjectNode().put("committed", committed).put("uncommitted", uncommitted));
    }

    // --- consume ---------------------------------------------------------------------------------------------------------------------

    /** What reading one partition from its beginning has proved so far. */
    static final class Proof {
        final Book book;
        final int partition;
        final Account account;
        final boolean compacted;
        final Map<Long, Long> lastOfKey = new HashMap<>();
        final BitSet seen = new BitSet();
        int run;
        long lastNumber = -1;
        long records;
        long bytes;
        long crc32Sum;
        long unacknowledged;

        Proof(Book book, int partition, boolean compacted) {
            this.book = book;
            this.partition = partition;
            this.account = book.accounts[partition];
            this.compacted = compacted;
        }

        /** The number that the ledger has at this offset, or -1. Offsets come in ascending order. */
        private long expected(long offset) {
            while (run < account.runs.size()) {
                long[] r = account.runs.get(run);
                if (offset > r[2] + (r[1] - r[0])) {
                    run++;
                } else {
                    return offset < r[2] ? -1 : r[0] + (offset - r[2]);
                }
            }
            return -1;
        }

        void add(ConsumerRecord<byte[], byte[]> record, boolean light) {
            byte[] value = record.value();
            String where = book.topic + "-" + partition + " offset " + record.offset();
            if (value == null || value.length < HEADER_BYTES) {
                throw new Failed(where + ": the value has " + (value == null ? "no" : value.length) + " bytes, that is no record of this tool");
            }
            ByteBuffer in = ByteBuffer.wrap(value);
            long number = in.getLong(8);
            if (in.getInt(0) != MAGIC || in.getInt(4) != partition) {
                throw new Failed(where + ": magic " + Integer.toHexString(in.getInt(0)) + " partition " + in.getInt(4) + " instead of its own");
            }
            long expected = expected(record.offset());
            if (expected >= 0 && expected != number) {
                throw new Failed(where + ": record " + number + " where " + expected + " was acknowledged");
            }
            if (number <= lastNumber) {
                throw new Failed(where + ": record " + number + " after record " + lastNumber + (seen.get((int) number) ? " (a second time)" : ""));
            }
            if (!light && !Arrays.equals(value, book.value(partition, number))) {
                throw new Failed(where + ": the bytes of record " + number + " are not those that were sent");
            }
            lastNumber = number;
            seen.set((int) number);
            if (expected < 0) {
                unacknowledged++;
            }
            records++;
            bytes += value.length;
            crc32Sum += light ? 0 : crc32(value);
            if (book.keys > 0) {
                lastOfKey.put(number % book.keys, number);
            }
        }

        void finish(long firstOffset) {
            Map<Long, Long> wanted = new HashMap<>();
            for (long[] r : account.runs) {
                for (long number = r[0]; number <= r[1]; number++) {
                    long offset = r[2] + (number - r[0]);
                    if (compacted) {
                        wanted.put(number % book.keys, number);
                    } else if (offset >= firstOffset && !seen.get((int) number)) {
                        throw new Failed(book.topic + "-" + partition + " offset " + offset + ": acknowledged record " + number + " is missing");
                    }
                }
            }
            wanted.forEach((key, number) -> {
                if (lastOfKey.getOrDefault(key, -1L) < number) {
                    throw new Failed(book.topic + "-" + partition + ": the last record of key " + key + " is " + lastOfKey.get(key) + ", " + number + " was acknowledged");
                }
            });
        }
    }

    /** {@code --warm-up LEDGER}: another topic to read first, unmeasured, so that what is measured is compiled code. */
    static void consume(Args args) throws Exception {
        String warmUp = args.text("warm-up", "");
        if (!warmUp.isEmpty()) {
            consume(args, warmUp);
        }
        System.out.println(consume(args, args.text("ledger")));
    }

    /** What one consumer saw. */
    record Seen(long firstNs, long longestGapNs) {}

    /** Proves all partitions, with {@code --consumers N} each of N consumers an equal share of them, all at once. */
    static ObjectNode consume(Args args, String ledger) throws Exception {
        Book book = Book.load(new File(ledger));
        int consumers = (int) args.number("consumers", 1);
        Proof[] proofs = new Proof[book.accounts.length];
        for (int i = 0; i < proofs.length; i++) {
            proofs[i] = new Proof(book, i, args.flag("compacted"));
        }
        long start = System.nanoTime();
        List<Callable<Seen>> shares = new ArrayList<>();
        for (int c = 0; c < consumers; c++) {
            List<TopicPartition> share = new ArrayList<>();
            for (int i = c; i < proofs.length; i += consumers) {
                share.add(new TopicPartition(book.topic, i));
            }
            shares.add(() -> consumeShare(args, share, proofs));
        }
        ExecutorService threads = Executors.newFixedThreadPool(consumers);
        long first = Long.MAX_VALUE, longestGap = 0;
        try {
            for (Future<Seen> done : threads.invokeAll(shares)) {
                first = Math.min(first, done.get().firstNs());
                longestGap = Math.max(longestGap, done.get().longestGapNs());
            }
        } catch (ExecutionException e) {
            throw e.getCause() instanceof Exception cause ? cause : e;
        } finally {
            threads.shutdownNow();
        }
        double seconds = (System.nanoTime() - start) / 1e9;
        long records = 0, bytes = 0, sum = 0, unacknowledged = 0;
        for (Proof proof : proofs) {
            records += proof.records;
            bytes += proof.bytes;
            sum += proof.crc32Sum;
            unacknowledged += proof.unacknowledged;
        }
        ObjectNode out = JSON.createObjectNode();
        out.put("records", records).put("bytes", bytes).put("unacknowledged", unacknowledged).put("crc32_sum", sum);
        out.put("seconds", seconds).put("mb_per_s", bytes / 1e6 / seconds);
        out.put("first_record_ms", first / 1e6).put("longest_gap_ms", longestGap / 1e6);
        return out;
    }

    private static Seen consumeShare(Args args, List<TopicPartition> parts, Proof[] proofs) {
        boolean light = args.flag("light");
        long patienceNs = args.number("patience-s", 60) * 1_000_000_000L;
        Properties p = consumerProperties(args);
        p.put("isolation.level", args.flag("read-committed") ? "read_committed" : "read_uncommitted");
        p.put("max.poll.records", "5000");
        p.put("fetch.max.bytes", args.text("fetch-max-bytes", "52428800"));
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(p)) {
            consumer.assign(parts);
            Map<TopicPartition, Long> begin = consumer.beginningOffsets(parts);
            Map<TopicPartition, Long> end = consumer.endOffsets(parts);
            for (TopicPartition tp : parts) {
                if (begin.get(tp) != 0 && !args.flag("allow-trimmed")) {
                    throw new Failed(tp + " begins at offset " + begin.get(tp) + ", not at 0");
                }
                consumer.seek(tp, begin.get(tp));
            }
            long start = System.nanoTime();
            long first = -1;
            long lastProgress = start;
            long longestGap = 0;
            Set<TopicPartition> open = new HashSet<>(parts);
            open.removeIf(tp -> begin.get(tp) >= end.get(tp));
            while (!open.isEmpty()) {
                var batch = consumer.poll(Duration.ofMillis(500));
                long now = System.nanoTime();
                if (batch.isEmpty()) {
                    if (now - lastProgress > patienceNs) {
                        TopicPartition tp = open.iterator().next();
                        throw new Failed("no record for " + patienceNs / 1_000_000_000L + " s; " + tp + " stands at offset " + consumer.position(tp) + " of " + end.get(tp));
                    }
                } else {
                    first = first < 0 ? now - start : first;
                    longestGap = Math.max(longestGap, now - lastProgress);
                    lastProgress = now;
                    for (ConsumerRecord<byte[], byte[]> record : batch) {
                        if (record.offset() < end.get(new TopicPartition(record.topic(), record.partition()))) {
                            proofs[record.partition()].add(record, light);
                        }
                    }
                }
                open.removeIf(tp -> consumer.position(tp) >= end.get(tp));
            }
            for (TopicPartition tp : parts) {
                proofs[tp.partition()].finish(begin.get(tp));
            }
            return new Seen(first < 0 ? 0 : first, longestGap);
        }
    }

    private static Properties consumerProperties(Args args) {
        Properties p = new Properties();
        p.put("bootstrap.servers", args.text("bootstrap"));
        p.put("key.deserializer", ByteArrayDeserializer.class.getName());
        p.put("value.deserializer", ByteArrayDeserializer.class.getName());
        p.put("auto.offset.reset", "none");
        p.put("check.crcs", "true");
        p.put("request.timeout.ms", "40000");
        return p;
    }

    /** Follows the end of a topic for {@code --seconds}: how old records are when they arrive, and the longest time without any. */
    static void tail(Args args) throws Exception {
        long seconds = args.number("seconds", 10);
        List<TopicPartition> parts = new ArrayList<>();
        for (int i = 0; i < args.number("partitions", 1); i++) {
            parts.add(new TopicPartition(args.text("topic"), i));
        }
        List<Long> ages = new ArrayList<>();
        long longestGap = 0;
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(consumerProperties(args))) {
            consumer.assign(parts);
            consumer.seekToEnd(parts);
            parts.forEach(consumer::position);
            System.out.println("ready");
            long last = -1, end = System.nanoTime() + seconds * 1_000_000_000L;
            while (System.nanoTime() < end) {
                var batch = consumer.poll(Duration.ofMillis(100));
                long now = System.nanoTime();
                if (batch.isEmpty()) {
                    continue;
                }
                longestGap = last < 0 ? 0 : Math.max(longestGap, now - last);
                last = now;
                for (ConsumerRecord<byte[], byte[]> record : batch) {
                    ages.add(System.currentTimeMillis() - record.timestamp());
                }
            }
        }
        ages.sort(null);
        ObjectNode out = JSON.createObjectNode().put("records", ages.size()).put("longest_gap_ms", longestGap / 1e6);
        if (!ages.isEmpty()) {
            out.put("age_p50_ms", ages.get(ages.size() / 2)).put("age_p99_ms", ages.get((int) (ages.size() * 0.99)));
        }
        System.out.println(out);
    }

    /** What a reader of the records below some offsets must find: {@code --end PARTITION=OFFSET} for each. */
    static void sum(Args args) throws Exception {
        Book book = Book.load(new File(args.text("ledger")));
        long records = 0, sum = 0;
        for (String pair : args.all("end")) {
            int partition = Integer.parseInt(pair.substring(0, pair.indexOf('=')));
            long end = Long.parseLong(pair.substring(pair.indexOf('=') + 1));
            for (long[] run : book.accounts[partition].runs) {
                for (long number = run[0]; number <= run[1] && run[2] + (number - run[0]) < end; number++) {
                    records++;
                    sum += crc32(book.value(partition, number));
                }
            }
        }
        System.out.println(JSON.createObjectNode().put("records", records).put("crc32_sum", sum));
    }

    // --- topics ----------------------------------------------------------------------------------------------------------------------

    static Admin admin(Args args) {
        Properties p = new Properties();
        p.put("bootstrap.servers", args.text("bootstrap"));
        p.put("request.timeout.ms", "20000");
        p.put("default.api.timeout.ms", "40000");
        return Admin.create(p);
    }

    static void topic(Args args) throws Exception {
        try (Admin admin = admin(args)) {
            String name = args.text("topic");
            Map<String, String> config = new HashMap<>();
            for (String pair : args.all("config")) {
                int at = pair.indexOf('=');
                config.put(pair.substring(0, at), pair.substring(at + 1));
            }
            if (args.flag("create")) {
                NewTopic topic = new NewTopic(name, (int) args.number("partitions", 1), (short) args.number("replication", 1)).configs(config);
                admin.createTopics(List.of(topic)).all().get();
            } else if (args.flag("delete")) {
                admin.deleteTopics(List.of(name)).all().get();
            } else if (args.flag("alter")) {
                Collection<AlterConfigOp> ops = new ArrayList<>();
                config.forEach((k, v) -> ops.add(new AlterConfigOp(new ConfigEntry(k, v), AlterConfigOp.OpType.SET)));
                admin.incrementalAlterConfigs(Map.of(new ConfigResource(ConfigResource.Type.TOPIC, name), ops)).all().get();
            } else if (args.number("in-sync", 0) > 0) {
                long wanted = args.number("in-sync", 0);
                for (var part : admin.describeTopics(List.of(name)).allTopicNames().get().get(name).partitions()) {
                    if (part.isr().size() < wanted) {
                        System.out.println("partition " + part.partition() + " has " + part.isr().size());
                        return;
                    }
                }
                System.out.println("in sync");
            } else {
                throw new Args.Usage("topic needs --create, --delete, --alter or --in-sync N");
            }
        }
    }

    static void deleteRecords(Args args) throws Exception {
        try (Admin admin = admin(args)) {
            TopicPartition tp = new TopicPartition(args.text("topic"), (int) args.number("partition", 0));
            admin.deleteRecords(Map.of(tp, RecordsToDelete.beforeOffset(args.number("before", 0)))).all().get();
        }
    }

    /** Asks for a partition's replica to be moved to another log dir of its broker; the broker does it in the background. */
    static void move(Args args) throws Exception {
        try (Admin admin = admin(args)) {
            TopicPartitionReplica replica = new TopicPartitionReplica(args.text("topic"), (int) args.number("partition", 0), 1);
            admin.alterReplicaLogDirs(Map.of(replica, args.text("to"))).all().get();
        }
    }

    static void throttleMoves(Args args) throws Exception {
        try (Admin admin = admin(args)) {
            ConfigEntry limit = new ConfigEntry("replica.alter.log.dirs.io.max.bytes.per.second", args.text("bytes-per-s"));
            ConfigResource broker = new ConfigResource(ConfigResource.Type.BROKER, "1");
            admin.incrementalAlterConfigs(Map.of(broker, List.of(new AlterConfigOp(limit, AlterConfigOp.OpType.SET)))).all().get();
        }
    }

    /**
     * Each of {@code --groups} consumer groups commits offsets 1 to {@code --rounds} of partition 0, each with about 2000 bytes of metadata;
     * with {@code --check} the last one is what they must have.
     */
    static void groups(Args args) throws Exception {
        TopicPartition tp = new TopicPartition(args.text("topic"), 0);
        long rounds = args.number("rounds", 1);
        try (Admin admin = admin(args)) {
            for (long round = args.flag("check") ? rounds : 1; round <= rounds; round++) {
                List<KafkaFuture<?>> answers = new ArrayList<>();
                for (int g = 0; g < args.number("groups", 1); g++) {
                    String metadata = ("group " + g + " round " + round + " ").repeat(100);
                    OffsetAndMetadata wanted = new OffsetAndMetadata(round, metadata);
                    if (!args.flag("check")) {
                        answers.add(admin.alterConsumerGroupOffsets("group-" + g, Map.of(tp, wanted)).all());
                        continue;
                    }
                    OffsetAndMetadata found = admin.listConsumerGroupOffsets("group-" + g).partitionsToOffsetAndMetadata().get().get(tp);
                    if (found == null || found.offset() != round || !found.metadata().equals(metadata)) {
                        throw new Failed("group " + g + " has " + found + " and had committed " + round);
                    }
                }
                for (KafkaFuture<?> answer : answers) {
                    answer.get();
                }
            }
        }
    }

    static void offsets(Args args) throws Exception {
        Properties p = new Properties();
        p.put("bootstrap.servers", args.text("bootstrap"));
        p.put("key.deserializer", ByteArrayDeserializer.class.getName());
        p.put("value.deserializer", ByteArrayDeserializer.class.getName());
        ObjectNode out = JSON.createObjectNode();
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(p)) {
            List<TopicPartition> parts = new ArrayList<>();
            consumer.partitionsFor(args.text("topic")).forEach(info -> parts.add(new TopicPartition(info.topic(), info.partition())));
            Map<TopicPartition, Long> begin = consumer.beginningOffsets(parts);
            Map<TopicPartition, Long> end = consumer.endOffsets(parts);
            for (TopicPartition tp : parts) {
                out.putArray(Integer.toString(tp.partition())).add(begin.get(tp)).add(end.get(tp));
            }
        }
        System.out.println(out);
    }

    // --- the command line ------------------------------------------------------------------------------------------------------------

    static final class Args {
        static final class Usage extends RuntimeException {
            Usage(String message) {
                super(message);
            }
        }

        private static final Set<String> FLAGS = Set.of(
                "no-idempotence", "tolerate-failures", "light", "allow-trimmed", "compacted", "create", "delete", "alter",
                "leave-open", "read-committed", "check");
        private final Map<String, List<String>> given = new HashMap<>();

        Args(String[] words) {
            for (int i = 1; i < words.length; i++) {
                if (!words[i].startsWith("--")) {
                    throw new Usage("unexpected " + words[i]);
                }
                String name = words[i].substring(2);
                String value = FLAGS.contains(name) ? "" : i + 1 < words.length ? words[++i] : null;
                if (value == null) {
                    throw new Usage("--" + name + " needs a value");
                }
                given.computeIfAbsent(name, n -> new ArrayList<>()).add(value);
            }
        }

        boolean flag(String name) {
            return given.containsKey(name);
        }

        List<String> all(String name) {
            return given.getOrDefault(name, List.of());
        }

        String text(String name, String fallback) {
            return flag(name) ? all(name).get(0) : fallback;
        }

        String text(String name) {
            if (!flag(name)) {
                throw new Usage("--" + name + " is missing");
            }
            return text(name, null);
        }

        long number(String name, long fallback) {
            return flag(name) ? Long.parseLong(text(name)) : fallback;
        }
    }

    public static void main(String[] words) throws Exception {
        int code = 0;
        try {
            Args args = new Args(words);
            switch (words.length == 0 ? "" : words[0]) {
                case "produce" -> produce(args);
                case "transact" -> transact(args);
                case "consume" -> consume(args);
                case "tail" -> tail(args);
                case "topic" -> topic(args);
                case "delete-records" -> deleteRecords(args);
                case "offsets" -> offsets(args);
                case "move" -> move(args);
                case "throttle-moves" -> throttleMoves(args);
                case "groups" -> groups(args);
                case "sum" -> sum(args);
                default -> throw new Args.Usage("produce | transact | consume | tail | sum | topic | delete-records | offsets | move | throttle-moves | groups");
            }
        } catch (Args.Usage e) {
            System.err.println("Ledger: " + e.getMessage());
            code = 2;
        } catch (Exception e) {
            System.err.println("Ledger: " + (e instanceof Failed ? e.getMessage() : e.toString()));
            code = 1;
        }
        System.exit(code);
    }
}
