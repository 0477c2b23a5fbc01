import com.google.protobuf.ByteString;
import fluxlog.v1.Consume.Ack;
import fluxlog.v1.Consume.ConsumeRequest;
import fluxlog.v1.Consume.ConsumeResponse;
import fluxlog.v1.Consume.Subscribe;
import fluxlog.v1.ConsumerGrpc;
import fluxlog.v1.LogGrpc;
import fluxlog.v1.LogOuterClass.ProduceRequest;
import fluxlog.v1.RecordOuterClass.Record;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.StreamObserver;
import java.security.SecureRandom;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

/**
 * A group consumer and an idempotent producer with generated stubs and nothing else; any node of the cluster will do.
 *
 * <p>Thin HOST:PORT,… produce TOPIC PARTITIONS COUNT, or: Thin HOST:PORT,… consume TOPIC GROUP COUNT
 */
public class Thin {
  static String[] addresses;
  static int turn;

  static ManagedChannel nextNode() {
    return Grpc.newChannelBuilder(addresses[turn++ % addresses.length], InsecureChannelCredentials.create()).build();
  }

  /** Each record is sent until it is acknowledged, with the same sequence: it is written once. */
  static void produce(String topic, int partitions, int count) throws InterruptedException {
    byte[] id = new byte[16];
    new SecureRandom().nextBytes(id);
    ManagedChannel channel = nextNode();
    for (int number = 0; number < count; ) {
      Record record = Record.newBuilder().setValue(ByteString.copyFromUtf8("java-" + number)).build();
      ProduceRequest request = ProduceRequest.newBuilder().setTopic(topic).setPartition(number % partitions)
          .addRecords(record).setProducerId(ByteString.copyFrom(id)).setBaseSequence(number / partitions).build();
      try {
        LogGrpc.newBlockingStub(channel).withDeadlineAfter(5, TimeUnit.SECONDS).produce(request);
        number++;
      } catch (StatusRuntimeException error) {
        System.err.println(error.getMessage());
        Thread.sleep(100);
        channel.shutdownNow();
        channel = nextNode();
      }
    }
    channel.shutdownNow();
  }

  /** Each record is acknowledged when it has been handled; what was not comes again, here or elsewhere. */
  static class Consumer implements StreamObserver<ConsumeResponse> {
    final Subscribe.Builder subscribe;
    int left;
    StreamObserver<ConsumeRequest> requests;
    CountDownLatch ended;

    Consumer(String topic, String group, int count) {
      subscribe = Subscribe.newBuilder().setGroup(group).addTopics(topic).setCredits(100);
      left = count;
    }

    void run() throws InterruptedException {
      while (left > 0) {
        ManagedChannel channel = nextNode();
        ended = new CountDownLatch(1);
        requests = ConsumerGrpc.newStub(channel).consume(this);
        requests.onNext(ConsumeRequest.newBuilder().setSubscribe(subscribe).build());
        ended.await();
        channel.shutdownNow();
      }
    }

    @Override public void onNext(ConsumeResponse response) {
      if (response.hasSubscribed()) subscribe.setMemberId(response.getSubscribed().getMemberId());
      for (Record record : response.getDelivery().getRecordsList()) {
        if (left == 0) return;
        int partition = response.getDelivery().getPartition();
        System.out.println(partition + " " + record.getOffset() + " " + record.getValue().toStringUtf8());
        requests.onNext(ConsumeRequest.newBuilder().setAck(Ack.newBuilder().setTopic(subscribe.getTopics(0))
            .setPartition(partition).setFirstOffset(record.getOffset()).setLastOffset(record.getOffset())).build());
        if (--left == 0) requests.onCompleted(); // leaves the group, when what was acknowledged is committed
      }
    }
    @Override public void onError(Throwable error) { System.err.println(error.getMessage()); ended.countDown(); }
    @Override public void onCompleted() { ended.countDown(); }
  }

  public static void main(String[] args) throws InterruptedException {
    addresses = args[0].split(",");
    int count = Integer.parseInt(args[4]);
    if (args[1].equals("produce")) produce(args[2], Integer.parseInt(args[3]), count);
    else new Consumer(args[2], args[3], count).run();
  }
}
