package cli

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/disk"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/token"
)

func tlsCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tls",
		Short: "Certificates: show and revoke them, or make them as files",
		Long: `Certificates: show and revoke them, or make them as files. A cluster that began with "rbee cluster init" makes and renews its certificates
itself; "ca create" and "cert create" are for people who bring files to their machines with tools of their own.`,
	}
	ca := &cobra.Command{Use: "ca", Short: "The CA of a cluster, as files"}
	ca.AddCommand(caCreateCommand(a))
	cert := &cobra.Command{Use: "cert", Short: "Certificates of machines, as files"}
	cert.AddCommand(certCreateCommand(a))
	cmd.AddCommand(ca, cert, tlsListCommand(a), tlsRevokeCommand(a), tlsInfoCommand(a))
	return cmd
}

func tlsListCommand(a *app) *cobra.Command {
	return a.reads(&cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the machines of the cluster with their certificates",
		Args:    exactly(),
	}, func(ctx context.Context, c *client.Client, _ []string, read ...client.ReadOption) error {
		nodes, err := c.Nodes(ctx, read...)
		if err != nil {
			return err
		}
		sortNodes(nodes)
		return a.show(list(nodes), nodeTable(a, nodes).Write)
	})
}

func tlsRevokeCommand(a *app) *cobra.Command {
	var yes, dryRun bool
	cmd := &cobra.Command{
		Use:   "revoke NODE",
		Short: "Have a machine's certificates refused, for ever",
		Long: `Have a machine's certificates refused by every machine of the cluster, for ever: for one that was stolen or is lost. It cannot be undone; the
machine needs a new id to join again. A machine that still runs leaves better with "rbee cluster leave".`,
		Args:              exactly("NODE"),
		ValidArgsFunction: first(a.names(nodeNames)),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		n, err := findNode(ctx, c, args[0])
		if err != nil {
			return err
		}
		if dryRun {
			fmt.Fprintln(a.stderr, "Would revoke the certificates of this machine:")
			return a.show(n, nodeTable(a, []core.Node{n}).Write)
		}
		if err := a.confirm(ctx, yes, fmt.Sprintf("Have the certificates of %s refused, for ever?", named(n.Name, n.ID))); err != nil {
			return err
		}
		if n, err = c.RevokeNode(ctx, n.ID); err != nil {
			return err
		}
		return a.show(n, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "The certificates of %s are revoked.\n", term.Line(named(n.Name, n.ID)))
			return err
		})
	})
	destructiveFlags(cmd, &yes, &dryRun)
	return cmd
}

// filesJSON is the output of "rbee tls … create".
type filesJSON struct {
	Cluster   string    `json:"cluster"`
	Node      string    `json:"node,omitempty"`
	Files     []string  `json:"files"`
	ExpiresAt time.Time `json:"expires_at"`
}

func caCreateCommand(a *app) *cobra.Command {
	var out, clusterName string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a CA, a gossip key and an operator token: ca.pem, ca.key, gossip.key, operator.token",
		Long: `Make a CA, a gossip key and an operator token: ca.pem and gossip.key are for every machine, ca.key is for nobody but you. operator.token is for
the queens that begin the cluster (queen { operator_token_file = … }), and for you: it has all scopes. Such a cluster knows no join tokens:
its machines find each other with gossip { retry_join = … }, and have their certificates from "rbee tls cert create".`,
		Args: exactly(),
	}
	cmd.RunE = do(func(_ context.Context, _ *cobra.Command, _ []string) error {
		ca, err := pki.NewCA(randomHex(8), clusterName, a.now())
		if err != nil {
			return err
		}
		gossip := base64.StdEncoding.EncodeToString(pki.NewGossipKey()) + "\n"
		_, _, operator := token.New()
		written, err := writeNewFiles(out, []file{
			{"ca.pem", ca.CertPEM(), 0o644}, {"ca.key", ca.KeyPEM(), 0o600}, {"gossip.key", []byte(gossip), 0o600}, {"operator.token", []byte(operator + "\n"), 0o600},
		})
		if err != nil {
			return err
		}
		return a.show(filesJSON{Cluster: ca.Cluster(), Files: written, ExpiresAt: ca.NotAfter()}, func(w io.Writer) error {
			fmt.Fprintf(a.stderr, "The CA of cluster %s, good until %s. Keep %s away from every machine of the cluster. For each machine:\n  rbee tls cert create --ca %s --ca-key %s --role queen,hive --name NAME --host ADDRESS\n",
				ca.Cluster(), ca.NotAfter().Format(time.DateOnly), written[1], written[0], written[1])
			_, err := fmt.Fprintln(w, strings.Join(written, "\n"))
			return err
		})
	})
	cmd.Flags().StringVar(&out, "out", ".", "`FOLDER` to write to")
	cmd.Flags().StringVar(&clusterName, "cluster-name", "", "`NAME` of the cluster, for people")
	return cmd
}

func certCreateCommand(a *app) *cobra.Command {
	var (
		out, caFile, caKey, name, nodeID string
		roles, hosts                     []string
		ttl                              time.Duration
		renew                            bool
	)
	cmd := &cobra.Command{
		Use:   "create --name NAME",
		Short: "Make a certificate for a machine: NAME.pem, NAME.key",
		Long: `Make a certificate for a machine, signed by a CA of "rbee tls ca create". --renew makes a new one for the machine that NAME.pem is of: with the
same key, id, roles and hosts.`,
		Example: "  rbee tls cert create --name a --role queen,hive --host 10.0.0.1\n  rbee tls cert create --name a --renew",
		Args:    exactly(),
	}
	cmd.RunE = do(func(_ context.Context, _ *cobra.Command, _ []string) error {
		if name == "" {
			return usageHint("It is the machine's name, and that of the files.", "--name is missing")
		}
		if strings.ContainsAny(name, "/\\") || strings.HasPrefix(name, ".") {
			return usageHint("Use letters, digits, dots, dashes and underscores.", "%q is no name for a machine", name)
		}
		if ttl <= 0 {
			return usagef("--ttl must be positive, not %s", ttl)
		}
		ca, caPEM, err := readCA(orElse(caFile, filepath.Join(out, "ca.pem")), orElse(caKey, filepath.Join(out, "ca.key")))
		if err != nil {
			return err
		}
		cert, key := filepath.Join(out, name+".pem"), filepath.Join(out, name+".key")
		n := pki.Node{Cluster: ca.Cluster(), ID: nodeID, Name: name}
		var keyPEM []byte
		if renew {
			if len(roles) > 0 || len(hosts) > 0 || nodeID != "" {
				return usageHint("Make a new certificate without --renew to change them.", "--renew keeps roles, hosts and id")
			}
			if n, hosts, keyPEM, err = oldCertificate(cert, key); err != nil {
				return err
			}
		} else {
			if n.Roles, err = rolesOf(roles); err != nil {
				return err
			}
			if n.ID == "" {
				n.ID = randomHex(4)
			}
			if keyPEM, err = pki.NewKey(); err != nil {
				return err
			}
		}
		csr, err := pki.NewRequest(keyPEM, n.ID)
		if err != nil {
			return err
		}
		if len(hosts) > 0 && !n.Has(core.RoleQueen) {
			fmt.Fprintln(a.stderr, "The certificate names no host: only a queen's does, as a hive serves no API.")
		}
		certPEM, made, err := ca.Sign(csr, n, hosts, ttl, a.now())
		if err != nil {
			return err
		}
		certPEM = append(certPEM, caPEM...)
		var written []string
		if renew {
			written, err = []string{cert}, replaceFile(cert, certPEM)
		} else {
			written, err = writeNewFiles(out, []file{{name + ".pem", certPEM, 0o644}, {name + ".key", keyPEM, 0o600}})
		}
		if err != nil {
			return err
		}
		return a.show(filesJSON{Cluster: made.Cluster, Node: made.ID, Files: written, ExpiresAt: made.NotAfter}, func(w io.Writer) error {
			fmt.Fprintf(a.stderr, "%s, a %s of cluster %s, until %s. On that machine:\n  tls {\n    ca_file   = \"…/ca.pem\"\n    cert_file = \"…/%s.pem\"\n    key_file  = \"…/%s.key\"\n  }\n",
				term.Line(named(name, made.ID)), rolesText(made.Roles), made.Cluster, made.NotAfter.Format(time.DateOnly), name, name)
			_, err := fmt.Fprintln(w, strings.Join(written, "\n"))
			return err
		})
	})
	f := cmd.Flags()
	f.StringVar(&out, "out", ".", "`FOLDER` to write to")
	f.StringVar(&caFile, "ca", "", "`FILE` with the CA's certificate (default: ca.pem in --out)")
	f.StringVar(&caKey, "ca-key", "", "`FILE` with the CA's key (default: ca.key in --out)")
	f.StringVar(&name, "name", "", "`NAME` of the machine, and of the files")
	f.StringVar(&nodeID, "node-id", "", "`ID` of the machine, 8 hex digits (default: a new one)")
	f.StringSliceVar(&roles, "role", nil, "`ROLES` of the machine: queen, hive (default: both)")
	f.StringSliceVar(&hosts, "host", nil, "`HOSTS`: names and addresses at which clients reach a queen; may be repeated")
	f.DurationVar(&ttl, "ttl", 365*24*time.Hour, "how long it is good for")
	f.BoolVar(&renew, "renew", false, "a new certificate in the place of NAME.pem, for the same key")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(roleNames(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func rolesOf(names []string) ([]core.Role, error) {
	if len(names) == 0 {
		return []core.Role{core.RoleQueen, core.RoleHive}, nil
	}
	var roles []core.Role
	for _, n := range names {
		if !slices.Contains(roleNames(), n) {
			return nil, usageHint("It is queen or hive, or both with a comma between them.", "unknown role %q", n)
		}
		roles = append(roles, core.Role(n))
	}
	return roles, nil
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return fmt.Sprintf("%x", b)
}

func readCA(certFile, keyFile string) (*pki.CA, []byte, error) {
	const hint = "Name the files of \"rbee tls ca create\" with --ca and --ca-key."
	certPEM, err := os.ReadFile(certFile)
	if err != nil {
		return nil, nil, core.WithHint(core.Wrap(err, core.NotFound, "read the CA's certificate"), hint)
	}
	keyPEM, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, nil, core.WithHint(core.Wrap(err, core.NotFound, "read the CA's key"), hint)
	}
	ca, err := pki.ParseCA(certPEM, keyPEM)
	if err != nil {
		return nil, nil, core.Errorf(core.KindOf(err), "read the CA: %w", err).Hint(hint)
	}
	return ca, ca.CertPEM(), nil
}

// oldCertificate reads what a renewed certificate keeps.
func oldCertificate(certFile, keyFile string) (n pki.Node, hosts []string, keyPEM []byte, err error) {
	const hint = "--renew needs the certificate and the key in the folder of --out. Without it a new machine is made."
	b, err := os.ReadFile(certFile)
	if err != nil {
		return n, nil, nil, core.WithHint(core.Wrap(err, core.NotFound, "read the certificate"), hint)
	}
	if keyPEM, err = os.ReadFile(keyFile); err != nil {
		return n, nil, nil, core.WithHint(core.Wrap(err, core.NotFound, "read the key"), hint)
	}
	certs, err := certificates(b)
	if err != nil {
		return n, nil, nil, err
	}
	if n, err = pki.NodeOf(certs[0]); err != nil {
		return n, nil, nil, err
	}
	return n, hostsOf(certs[0]), keyPEM, nil
}

// hostsOf returns the names and addresses that a certificate is for, without those that every one
// has.
func hostsOf(c *x509.Certificate) []string {
	var hosts []string
	for _, name := range c.DNSNames {
		if name != core.LocalHive && !strings.HasSuffix(name, ".rbee") {
			hosts = append(hosts, name)
		}
	}
	for _, ip := range c.IPAddresses {
		if addr, ok := netip.AddrFromSlice(ip); ok && addr.Unmap() != netip.AddrFrom4([4]byte{127, 0, 0, 1}) && addr != netip.IPv6Loopback() {
			hosts = append(hosts, addr.Unmap().String())
		}
	}
	return hosts
}

// file is one to write.
type file struct {
	name string
	data []byte
	mode fs.FileMode
}

// writeNewFiles writes files that must not exist yet: keys are never replaced by accident.
func writeNewFiles(dir string, files []file) ([]string, error) {
	if err := disk.MakeFolder(dir); err != nil {
		return nil, core.WithHint(core.Wrap(err, core.Invalid, "make the folder"), "Name another one with --out.")
	}
	var written []string
	for _, x := range files {
		path := filepath.Join(dir, x.name)
		if _, err := os.Lstat(path); err == nil {
			return nil, core.Errorf(core.Conflict, "%s exists", path).Hint("Nothing was written. Name another folder with --out, or move the file away.")
		}
		written = append(written, path)
	}
	for i, x := range files {
		f, err := os.OpenFile(written[i], os.O_WRONLY|os.O_CREATE|os.O_EXCL, x.mode)
		if err != nil {
			return nil, core.WithHint(core.Wrap(err, core.Invalid, "write the file"), "Name a folder that you may write to with --out.")
		}
		_, err = f.Write(x.data)
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return nil, core.Wrap(err, core.Internal, "write "+written[i])
		}
	}
	return written, core.Wrap(disk.SyncFolder(dir), core.Internal, "write the files")
}

func replaceFile(path string, data []byte) error {
	err := disk.Replace(path, data, 0o644)
	if errors.Is(err, fs.ErrPermission) {
		return core.WithHint(core.Wrap(err, core.Invalid, "write the file"), "Name a folder that you may write to with --out.")
	}
	return core.Wrap(err, core.Internal, "write "+path)
}

// certificateJSON is one certificate of a file.
type certificateJSON struct {
	Kind        string      `json:"kind"` // "ca", "node" or "other"
	Subject     string      `json:"subject"`
	Cluster     string      `json:"cluster,omitempty"`
	Node        string      `json:"node,omitempty"`
	Name        string      `json:"name,omitempty"`
	Roles       []core.Role `json:"roles,omitempty"`
	Hosts       []string    `json:"hosts,omitempty"`
	NotBefore   time.Time   `json:"not_before"`
	NotAfter    time.Time   `json:"not_after"`
	Fingerprint string      `json:"fingerprint"` // as join tokens have it
}

func tlsInfoCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "info FILE",
		Short: "Show the certificates in a file; needs no agent",
		Args:  exactly("FILE"),
		RunE: do(func(_ context.Context, _ *cobra.Command, args []string) error {
			b, err := os.ReadFile(args[0])
			if err != nil {
				return core.WithHint(core.Wrap(err, core.NotFound, "read the file"), "Name a PEM file, such as cluster/node.pem in the data folder.")
			}
			certs, err := certificates(b)
			if err != nil {
				return core.Errorf(core.KindOf(err), "%s: %w", args[0], err).Hint("Name a PEM file with certificates, such as cluster/node.pem in the data folder.")
			}
			var out []certificateJSON
			for _, c := range certs {
				out = append(out, describeCertificate(c))
			}
			return a.show(out, func(w io.Writer) error { return writeCertificates(a, w, out) })
		}),
	}
}

func describeCertificate(c *x509.Certificate) certificateJSON {
	j := certificateJSON{Kind: "other", Subject: c.Subject.String(), Hosts: hostsOf(c), NotBefore: c.NotBefore, NotAfter: c.NotAfter}
	j.Fingerprint, _ = pki.Fingerprint(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	if n, err := pki.NodeOf(c); err == nil {
		j.Kind, j.Cluster, j.Node, j.Name, j.Roles = "node", n.Cluster, n.ID, n.Name, n.Roles
	} else if c.IsCA {
		j.Kind = "ca"
		for _, u := range c.URIs {
			if u.Scheme == "rbee" {
				j.Cluster = u.Host
			}
		}
	}
	return j
}

func writeCertificates(a *app, w io.Writer, list []certificateJSON) error {
	for i, c := range list {
		if i > 0 {
			fmt.Fprintln(w)
		}
		f := &term.Facts{}
		switch c.Kind {
		case "node":
			f.Addf("Certificate", "of %s, a %s", named(c.Name, c.Node), rolesText(c.Roles))
		case "ca":
			f.Add("Certificate", "of a CA")
		default:
			f.Add("Certificate", "of something else: "+c.Subject)
		}
		f.Add("Cluster", c.Cluster)
		f.Add("Hosts", strings.Join(c.Hosts, ", "))
		f.Addf("Valid", "%s to %s, %s", c.NotBefore.UTC().Format(time.DateTime), c.NotAfter.UTC().Format(time.DateTime), expiryText(a, c.NotAfter))
		f.Add("Fingerprint", c.Fingerprint)
		if err := f.Write(w); err != nil {
			return err
		}
	}
	return nil
}

// certificates reads the certificates of a PEM file, and skips other blocks.
func certificates(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, core.Errorf(core.Integrity, "a certificate in it is damaged")
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, core.Errorf(core.Integrity, "there is no certificate in it")
	}
	return out, nil
}
