import java.time.Duration;
import java.util.List;
import java.util.Properties;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * Transactions for the recorded traces: every third is aborted, the last one is left open, then partition 0 is read committed.
 *
 * <p>Usage: Transactions --bootstrap HOST:PORT TOPIC COUNT ROUND
 */
public final class Transactions {
    private static final int RECORDS = 30;
    private static final int BYTES = 400;

    public static void main(String[] words) {
        String bootstrap = words[1];
        String topic = words[2];
        int count = Integer.parseInt(words[3]);
        int round = Integer.parseInt(words[4]);
        int committed = 0;
        try (KafkaProducer<byte[], byte[]> producer = producer(bootstrap)) {
            producer.initTransactions();
            for (int i = 0; i < count; i++) {
                producer.beginTransaction();
                send(producer, topic, round * count + i);
                if (i % 3 == 1) {
                    producer.abortTransaction();
                } else {
                    producer.commitTransaction();
                    committed += RECORDS;
                }
            }
            producer.beginTransaction();
            send(producer, topic, -round - 1);
            int read = read(bootstrap, topic);
            System.out.println("committed " + committed + ", read " + read);
            if (read < committed) {
                throw new IllegalStateException("committed " + committed + ", read " + read);
            }
            // Nothing is closed in order: the broker has to abort it.
            Runtime.getRuntime().halt(0);
        }
    }

    private static void send(KafkaProducer<byte[], byte[]> producer, String topic, int number) {
        for (int r = 0; r < RECORDS; r++) {
            byte[] value = new byte[BYTES];
            java.util.Arrays.fill(value, (byte) (number * 31 + r));
            producer.send(new ProducerRecord<>(topic, 0, null, value));
        }
        producer.flush();
    }

    private static int read(String bootstrap, String topic) {
        Properties p = new Properties();
        p.put("bootstrap.servers", bootstrap);
        p.put("key.deserializer", ByteArrayDeserializer.class.getName());
        p.put("value.deserializer", ByteArrayDeserializer.class.getName());
        p.put("isolation.level", "read_committed");
        TopicPartition tp = new TopicPartition(topic, 0);
        int read = 0;
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(p)) {
            consumer.assign(List.of(tp));
            consumer.seek(tp, 0);
            long end = consumer.endOffsets(List.of(tp)).get(tp);
            long deadline = System.nanoTime() + 60_000_000_000L;
            while (consumer.position(tp) < end && System.nanoTime() < deadline) {
                read += consumer.poll(Duration.ofMillis(500)).count();
            }
        }
        return read;
    }

    private static KafkaProducer<byte[], byte[]> producer(String bootstrap) {
        Properties p = new Properties();
        p.put("bootstrap.servers", bootstrap);
        p.put("key.serializer", ByteArraySerializer.class.getName());
        p.put("value.serializer", ByteArraySerializer.class.getName());
        p.put("transactional.id", "mover");
        p.put("transaction.timeout.ms", "15000");
        p.put("batch.size", "4096");
        p.put("linger.ms", "2");
        return new KafkaProducer<>(p);
    }
}
