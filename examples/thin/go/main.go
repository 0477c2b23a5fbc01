// A group consumer and an idempotent producer with generated stubs and nothing else; any node of the cluster will do.
//
//	thin HOST:PORT,… produce TOPIC PARTITIONS COUNT
//	thin HOST:PORT,… consume TOPIC GROUP COUNT
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "thin/fluxlogv1"
)

func dial(addresses []string, turn int) *grpc.ClientConn {
	conn, err := grpc.NewClient(addresses[turn%len(addresses)], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	return conn
}

// Each record is sent until it is acknowledged, with the same sequence: it is written once.
func produce(addresses []string, topic string, partitions, count int) {
	id, turn := make([]byte, 16), 0
	rand.Read(id)
	conn := dial(addresses, turn)
	for number := 0; number < count; number++ {
		request := &pb.ProduceRequest{Topic: topic, Partition: uint32(number % partitions), ProducerId: id,
			BaseSequence: uint64(number / partitions), Records: []*pb.Record{{Value: fmt.Appendf(nil, "go-%d", number)}}}
		for {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			_, err := pb.NewLogClient(conn).Produce(ctx, request)
			cancel()
			if err == nil {
				break
			}
			log.Print(err)
			time.Sleep(100 * time.Millisecond)
			conn.Close()
			turn++
			conn = dial(addresses, turn)
		}
	}
}

// Each record is acknowledged when it has been handled; what was not comes again, here or elsewhere.
func consume(addresses []string, topic, group string, count int) {
	subscribe := &pb.Subscribe{Group: group, Topics: []string{topic}, Credits: 100}
	for handled, turn := 0, 0; handled < count; turn++ {
		conn := dial(addresses, turn)
		stream, err := pb.NewConsumerClient(conn).Consume(context.Background())
		if err == nil {
			err = stream.Send(&pb.ConsumeRequest{Body: &pb.ConsumeRequest_Subscribe{Subscribe: subscribe}})
		}
		for err == nil {
			var response *pb.ConsumeResponse
			if response, err = stream.Recv(); err != nil {
				break
			}
			if subscribed := response.GetSubscribed(); subscribed != nil {
				subscribe.MemberId = subscribed.MemberId
			}
			delivery := response.GetDelivery()
			for _, record := range delivery.GetRecords() {
				if handled++; handled > count {
					break
				}
				fmt.Println(delivery.Partition, record.Offset, string(record.Value))
				ack := &pb.Ack{Topic: topic, Partition: delivery.Partition, FirstOffset: record.Offset, LastOffset: record.Offset}
				stream.Send(&pb.ConsumeRequest{Body: &pb.ConsumeRequest_Ack{Ack: ack}})
			}
			if handled >= count {
				stream.CloseSend() // leaves the group; the stream ends when what was acknowledged is committed
			}
		}
		log.Print(err)
		conn.Close()
		time.Sleep(100 * time.Millisecond)
	}
}

func main() {
	addresses, count := strings.Split(os.Args[1], ","), 0
	count, _ = strconv.Atoi(os.Args[5])
	if partitions, _ := strconv.Atoi(os.Args[4]); os.Args[2] == "produce" {
		produce(addresses, os.Args[3], partitions, count)
	} else {
		consume(addresses, os.Args[3], os.Args[4], count)
	}
}
