package harness

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// api is a minimal client of the API server, as administrator. The harness needs four calls of it: not a library's worth.
type api struct {
	server string
	http   *http.Client
}

func (c *Cluster) api() (*api, error) {
	pair, err := tls.LoadX509KeyPair(c.path("pki", "admin.crt"), c.path("pki", "admin.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(c.path("pki", "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &api{c.Server(), &http.Client{
		Timeout: 5 * time.Second,
		// No proxy: the address exists on this machine only.
		Transport: &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots}},
	}}, nil
}

func (a *api) call(method, path, contentType string, body []byte) ([]byte, error) {
	request, err := http.NewRequest(method, a.server+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", contentType)
	response, err := a.http.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, response.Status, text)
	}
	return text, err
}

func (a *api) ready() bool {
	text, err := a.call(http.MethodGet, "/readyz", "", nil)
	return err == nil && string(text) == "ok"
}

// nodeReady says whether the kubelet has reported the node as Ready at or after a time.
func (a *api) nodeReady(since time.Time) bool {
	text, err := a.call(http.MethodGet, "/api/v1/nodes/"+NodeName, "", nil)
	if err != nil {
		return false
	}
	var node struct {
		Status struct {
			Conditions []struct {
				Type, Status      string
				LastHeartbeatTime time.Time
			}
		}
	}
	if json.Unmarshal(text, &node) != nil {
		return false
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == "Ready" {
			return condition.Status == "True" && !condition.LastHeartbeatTime.Before(since)
		}
	}
	return false
}

// defaultAccount says whether pods can be made in the default namespace: the service account is made a moment after it.
func (a *api) defaultAccount() bool {
	_, err := a.call(http.MethodGet, "/api/v1/namespaces/default/serviceaccounts/default", "", nil)
	return err == nil
}
