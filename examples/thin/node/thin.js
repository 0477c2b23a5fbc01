// A group consumer and an idempotent producer with gRPC and nothing else; any node of the cluster will do.
//
//   node thin.js HOST:PORT,… produce TOPIC PARTITIONS COUNT
//   node thin.js HOST:PORT,… consume TOPIC GROUP COUNT
//
// FLUXLOG_PROTO is the directory with fluxlog/v1/*.proto (default: that of this repository).
const { randomBytes } = require("node:crypto");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const protos = process.env.FLUXLOG_PROTO || path.join(__dirname, "../../../proto");
const definition = loader.loadSync(["fluxlog/v1/log.proto", "fluxlog/v1/consume.proto"], {
  includeDirs: [protos],
  keepCase: true,
  defaults: true, // zero is not left out
  longs: Number, // offsets stay exact up to 2^53
  oneofs: true,
});
const v1 = grpc.loadPackageDefinition(definition).fluxlog.v1;
const plain = grpc.credentials.createInsecure();
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// Each record is sent until it is acknowledged, with the same sequence: it is written once.
async function produce(addresses, topic, partitions, count) {
  const producer_id = randomBytes(16);
  let turn = 0;
  let client = new v1.Log(addresses[0], plain);
  for (let number = 0; number < count; number++) {
    const request = {
      topic,
      partition: number % partitions,
      records: [{ value: Buffer.from(`node-${number}`) }],
      producer_id,
      base_sequence: Math.floor(number / partitions),
    };
    for (;;) {
      const error = await new Promise((done) => client.Produce(request, { deadline: Date.now() + 5000 }, done));
      if (!error) break;
      console.error(error.message);
      await pause(100);
      client.close();
      client = new v1.Log(addresses[++turn % addresses.length], plain);
    }
  }
  client.close();
}

// Each record is acknowledged when it has been handled; what was not comes again, here or elsewhere.
async function consume(addresses, topic, group, count) {
  const subscribe = { group, topics: [topic], credits: 100 };
  let handled = 0;
  for (let turn = 0; handled < count; turn++) {
    const client = new v1.Consumer(addresses[turn % addresses.length], plain);
    const stream = client.Consume();
    stream.write({ subscribe });
    stream.on("data", ({ subscribed, delivery }) => {
      if (subscribed) subscribe.member_id = subscribed.member_id;
      if (!delivery || handled >= count) return;
      for (const record of delivery.records.slice(0, count - handled)) {
        console.log(delivery.partition, record.offset, record.value.toString());
        handled++;
        const { offset } = record;
        stream.write({ ack: { topic, partition: delivery.partition, first_offset: offset, last_offset: offset } });
      }
      if (handled === count) stream.end(); // leaves the group, when what was acknowledged is committed
    });
    await new Promise((done) => {
      stream.on("error", (error) => {
        console.error(error.message);
        done();
      });
      stream.on("end", done);
    });
    client.close();
    await pause(100);
  }
}

const [bootstrap, verb, topic, third, total] = process.argv.slice(2);
const addresses = bootstrap.split(",");
if (verb === "produce") produce(addresses, topic, Number(third), Number(total));
else consume(addresses, topic, third, Number(total));
