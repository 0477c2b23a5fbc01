"""A group consumer and an idempotent producer with generated stubs and nothing else; any node of the cluster will do.

python thin.py HOST:PORT,… produce TOPIC PARTITIONS COUNT
python thin.py HOST:PORT,… consume TOPIC GROUP COUNT
"""

import itertools
import os
import queue
import sys
import time

import grpc

from fluxlog.v1 import consume_pb2, consume_pb2_grpc, log_pb2, log_pb2_grpc, record_pb2


def produce(addresses: list[str], topic: str, partitions: int, count: int) -> None:
    """Each record is sent until it is acknowledged, with the same sequence: it is written once."""
    producer_id, nodes = os.urandom(16), itertools.cycle(addresses)
    stub = log_pb2_grpc.LogStub(grpc.insecure_channel(next(nodes)))
    for number in range(count):
        request = log_pb2.ProduceRequest(
            topic=topic,
            partition=number % partitions,
            records=[record_pb2.Record(value=b"python-%d" % number)],
            producer_id=producer_id,
            base_sequence=number // partitions,
        )
        while True:
            try:
                stub.Produce(request, timeout=5)
                break
            except grpc.RpcError as error:
                print(error.code().name, error.details(), file=sys.stderr)
                time.sleep(0.1)
                stub = log_pb2_grpc.LogStub(grpc.insecure_channel(next(nodes)))


def consume(addresses: list[str], topic: str, group: str, count: int) -> None:
    """Each record is acknowledged when it has been handled; what was not comes again, here or elsewhere."""
    nodes, member_id, handled = itertools.cycle(addresses), b"", 0
    while handled < count:
        requests: queue.SimpleQueue = queue.SimpleQueue()
        subscribe = consume_pb2.Subscribe(group=group, topics=[topic], credits=100, member_id=member_id)
        requests.put(consume_pb2.ConsumeRequest(subscribe=subscribe))
        stub = consume_pb2_grpc.ConsumerStub(grpc.insecure_channel(next(nodes)))
        try:
            for response in stub.Consume(iter(requests.get, None)):
                if response.HasField("subscribed"):
                    member_id = response.subscribed.member_id
                elif response.HasField("delivery") and handled < count:
                    handled += handle(response.delivery, requests, count - handled)
                    if handled == count:
                        requests.put(consume_pb2.ConsumeRequest(leave=consume_pb2.LeaveGroup()))
        except grpc.RpcError as error:
            print(error.code().name, error.details(), file=sys.stderr)
            time.sleep(0.1)
        requests.put(None)


def handle(delivery: consume_pb2.Delivery, requests: queue.SimpleQueue, most: int) -> int:
    """Print records, and acknowledge each; returns how many."""
    for record in delivery.records[:most]:
        print(delivery.partition, record.offset, record.value.decode(), flush=True)
        ack = consume_pb2.Ack(
            topic=delivery.topic, partition=delivery.partition, first_offset=record.offset, last_offset=record.offset
        )
        requests.put(consume_pb2.ConsumeRequest(ack=ack))
    return min(most, len(delivery.records))


if __name__ == "__main__":
    bootstrap, verb, subject, third, total = sys.argv[1:]
    if verb == "produce":
        produce(bootstrap.split(","), subject, int(third), int(total))
    else:
        consume(bootstrap.split(","), subject, third, int(total))
