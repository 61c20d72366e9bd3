// Network-policies enforces NetworkPolicies with the controller of sigs.k8s.io/kube-network-policies. Its own command needs a service account's
// files at a fixed path, and nftables' queue expression, which this machine's kernel may lack: here the kubeconfig is an argument, and rules of
// iptables (testcluster/network.py) put the packets into the queue.
package main

import (
	"context"
	"flag"
	"os/signal"
	"syscall"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "of a user who may list and watch namespaces, pods and networkpolicies")
	queue := flag.Int("queue", 100, "the number of the netfilter queue")
	table := flag.String("table", "network-policies", "the name of the nftables table, which stays empty or absent")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := enforce(ctx, *kubeconfig, *queue, *table); err != nil {
		klog.Fatal(err)
	}
}

func enforce(ctx context.Context, kubeconfig string, queue int, table string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	controller, err := networkpolicy.NewController(
		client,
		factory.Networking().V1().NetworkPolicies(), factory.Core().V1().Namespaces(), factory.Core().V1().Pods(),
		nil, nil, nil, nil,
		// One process is responsible for the pods of all nodes, which share this machine's kernel: it belongs to none of them.
		networkpolicy.Config{QueueID: queue, NodeName: "none", NFTableName: table, FailOpen: true},
	)
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	return controller.Run(ctx)
}
