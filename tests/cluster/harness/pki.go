package harness

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority is a certificate authority that lives for one cluster.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// writePKI makes every key, certificate and kubeconfig of the cluster, unless they are there already.
func (c *Cluster) writePKI() error {
	dir := c.path("pki")
	if _, err := os.Stat(c.Kubeconfig()); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	ca, err := newAuthority(dir, "ca")
	if err != nil {
		return err
	}
	frontProxy, err := newAuthority(dir, "front-proxy-ca")
	if err != nil {
		return err
	}
	apiNames := []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"}
	leaves := []struct {
		by    *authority
		file  string
		cn    string
		group string
		names []string // a server certificate when there are any
	}{
		{ca, "apiserver", "kube-apiserver", "", append(apiNames, "127.0.0.1", c.NodeIP(), c.firstService())},
		{ca, "kubelet-server", NodeName, "", []string{NodeName, "127.0.0.1", c.NodeIP()}},
		{ca, "apiserver-kubelet-client", "kube-apiserver-kubelet-client", "system:masters", nil},
		{frontProxy, "front-proxy-client", "front-proxy-client", "", nil},
		{ca, "admin", "admin", "system:masters", nil},
		{ca, "kube-controller-manager", "system:kube-controller-manager", "", nil},
		{ca, "kube-scheduler", "system:kube-scheduler", "", nil},
		{ca, "kubelet", "system:node:" + NodeName, "system:nodes", nil},
		{ca, "kube-proxy", "system:kube-proxy", "", nil},
	}
	for _, leaf := range leaves {
		if err := leaf.by.issue(leaf.file, leaf.cn, leaf.group, leaf.names); err != nil {
			return err
		}
	}
	if err := writeServiceAccountKey(dir); err != nil {
		return err
	}
	// The administrator's comes last: its presence says that the rest is complete.
	for _, user := range []string{"kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "admin"} {
		if err := c.writeKubeconfig(user); err != nil {
			return err
		}
	}
	return nil
}

func newAuthority(dir, name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := certificate(name, "")
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{dir, cert, key}, writePair(dir, name, der, key)
}

// certificate is a template that holds for ten years: a cluster's folder may be kept.
func certificate(commonName, group string) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	subject := pkix.Name{CommonName: commonName}
	if group != "" {
		subject.Organization = []string{group}
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, Subject: subject, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0)}
}

func (a *authority) issue(file, commonName, group string, names []string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := certificate(commonName, group)
	template.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(names) > 0 {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	for _, name := range names {
		if address := net.ParseIP(name); address != nil {
			template.IPAddresses = append(template.IPAddresses, address)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return err
	}
	return writePair(a.dir, file, der, key)
}

func writePair(dir, name string, der []byte, key *ecdsa.PrivateKey) error {
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	if err := writePEM(filepath.Join(dir, name+".crt"), "CERTIFICATE", der); err != nil {
		return err
	}
	return writePEM(filepath.Join(dir, name+".key"), "EC PRIVATE KEY", private)
}

func writePEM(file, kind string, der []byte) error {
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

func writeServiceAccountKey(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if err := writePEM(filepath.Join(dir, "sa.key"), "EC PRIVATE KEY", private); err != nil {
		return err
	}
	return writePEM(filepath.Join(dir, "sa.pub"), "PUBLIC KEY", public)
}

func (c *Cluster) writeKubeconfig(user string) error {
	var encoded [3]string
	for i, file := range []string{"ca.crt", user + ".crt", user + ".key"} {
		text, err := os.ReadFile(c.path("pki", file))
		if err != nil {
			return err
		}
		encoded[i] = base64.StdEncoding.EncodeToString(text)
	}
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: imagegen, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: %s, user: {client-certificate-data: %s, client-key-data: %s}}]
contexts: [{name: imagegen, context: {cluster: imagegen, user: %s}}]
current-context: imagegen
`, c.Server(), encoded[0], user, encoded[1], encoded[2], user)
	file := c.path("pki", user+".kubeconfig")
	if user == "admin" {
		file = c.Kubeconfig()
	}
	return os.WriteFile(file, []byte(text), 0o600)
}
