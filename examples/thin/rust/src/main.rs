//! A group consumer and an idempotent producer with generated stubs and nothing else; any node of the cluster will do.
//!
//!     thin HOST:PORT,… produce TOPIC PARTITIONS COUNT
//!     thin HOST:PORT,… consume TOPIC GROUP COUNT
use std::{env, fs::File, io::Read, time::Duration};

use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{transport::Endpoint, Status};

mod v1 {
    tonic::include_proto!("fluxlog.v1");
}
use v1::{consume_request::Body, consume_response, consumer_client::ConsumerClient, log_client::LogClient};

const PAUSE: Duration = Duration::from_millis(100);

fn node(addresses: &[String], turn: usize) -> tonic::transport::Channel {
    Endpoint::from_shared(format!("http://{}", addresses[turn % addresses.len()])).unwrap().connect_lazy()
}

/// Each record is sent until it is acknowledged, with the same sequence: it is written once.
async fn produce(addresses: &[String], topic: &str, partitions: u64, count: u64) {
    let (mut id, mut turn) = (vec![0; 16], 0);
    File::open("/dev/urandom").unwrap().read_exact(&mut id).unwrap();
    let mut client = LogClient::new(node(addresses, turn));
    for number in 0..count {
        let value = Some(format!("rust-{number}").into_bytes());
        let request = v1::ProduceRequest {
            topic: topic.into(),
            partition: (number % partitions) as u32,
            records: vec![v1::Record { value, ..Default::default() }],
            producer_id: id.clone(),
            base_sequence: number / partitions,
            timeout_ms: 5000,
            ..Default::default()
        };
        while let Err(error) = client.produce(request.clone()).await {
            eprintln!("{error}");
            sleep(PAUSE).await;
            turn += 1;
            client = LogClient::new(node(addresses, turn));
        }
    }
}

/// One stream: acknowledges each record when it has been handled, until as many are as are wanted.
async fn follow(address: tonic::transport::Channel, subscribe: &mut v1::Subscribe, handled: &mut u64, count: u64) -> Result<(), Status> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let mut sender = Some(sender);
    let send = |to: &Option<mpsc::UnboundedSender<v1::ConsumeRequest>>, body| {
        to.as_ref().map(|to| to.send(v1::ConsumeRequest { body: Some(body) }))
    };
    send(&sender, Body::Subscribe(subscribe.clone()));
    let requests = UnboundedReceiverStream::new(receiver);
    let mut stream = ConsumerClient::new(address).consume(requests).await?.into_inner();
    while let Some(response) = stream.message().await? {
        match response.body {
            Some(consume_response::Body::Subscribed(subscribed)) => subscribe.member_id = subscribed.member_id,
            Some(consume_response::Body::Delivery(v1::Delivery { topic, partition, records, .. })) => {
                for record in records.into_iter().take((count - *handled) as usize) {
                    println!("{partition} {} {}", record.offset, String::from_utf8_lossy(&record.value.unwrap_or_default()));
                    let (first_offset, last_offset) = (record.offset, record.offset);
                    send(&sender, Body::Ack(v1::Ack { topic: topic.clone(), partition, first_offset, last_offset }));
                    *handled += 1;
                }
            }
            _ => {}
        }
        if *handled == count {
            sender = None; // leaves the group; the stream ends when what was acknowledged is committed
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let addresses: Vec<String> = arguments[0].split(',').map(String::from).collect();
    let (topic, third, count) = (arguments[2].clone(), arguments[3].clone(), arguments[4].parse().unwrap());
    if arguments[1] == "produce" {
        return produce(&addresses, &topic, third.parse().unwrap(), count).await;
    }
    // What was not acknowledged when a stream broke comes again, here or elsewhere.
    let mut subscribe = v1::Subscribe { group: third, topics: vec![topic], credits: 100, ..Default::default() };
    let (mut handled, mut turn) = (0, 0);
    while handled < count {
        if let Err(error) = follow(node(&addresses, turn), &mut subscribe, &mut handled, count).await {
            eprintln!("{error}");
        }
        turn += 1;
        sleep(PAUSE).await;
    }
}
