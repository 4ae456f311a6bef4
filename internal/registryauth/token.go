package registryauth

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"

	"github.com/org/portainer/internal/seal"
)

// authorize returns the Authorization header with which to ask again after a
// 401, to be allowed actions.
func (c *checker) authorize(ctx context.Context, resp *http.Response, actions string) (string, error) {
	if c.Auth.RegistryToken != "" {
		return "Bearer " + c.Auth.RegistryToken, nil
	}
	says := complaint(resp)
	for _, challenge := range auth.ParseAuthHeader(resp.Header) { // tokens come first
		switch challenge.Scheme {
		case auth.BearerAuth:
			token, err := c.token(ctx, challenge, actions)
			if err != nil {
				return "", err
			}
			return "Bearer " + token, nil
		case auth.BasicAuth:
			if c.Auth.Password == "" {
				return "", c.denied(says)
			}
			both := c.Auth.Username + ":" + c.Auth.Password
			return "Basic " + base64.StdEncoding.EncodeToString([]byte(both)), nil
		}
	}
	return "", fmt.Errorf("%w: %s wants an authentication other than Basic and Bearer", ErrRegistry, c.Registry)
}

// token gets a token for actions from the token server that the registry names.
func (c *checker) token(ctx context.Context, challenge auth.Challenge, actions string) (string, error) {
	options, err := auth.GenerateTokenOptions(ctx, c.Registry, c.Auth.Username, c.Auth.Password, challenge)
	if err != nil {
		return "", fmt.Errorf("%w: %s names no token server: %w", ErrRegistry, c.Registry, err)
	}
	realm, err := url.Parse(options.Realm)
	switch {
	case err != nil || realm.Host == "":
		return "", fmt.Errorf("%w: %s names a bad token server", ErrRegistry, c.Registry)
	case realm.Scheme != "https" && !(realm.Scheme == "http" && c.lax):
		return "", fmt.Errorf("%w: %s names a token server without TLS, %s: allow it as insecure", ErrRegistry, c.Registry, realm.Host)
	}
	options.Scopes = []string{"repository:" + c.Repository + ":" + actions}
	header := http.Header{"User-Agent": {userAgent}}
	token := ""
	if c.Auth.IdentityToken != "" {
		options.Username, options.Secret = "", c.Auth.IdentityToken // as a refresh token
		var got *auth.OAuthTokenResponse
		if got, err = auth.FetchTokenWithOAuth(ctx, c.client, header, userAgent, options); err == nil {
			token = got.AccessToken
		}
	} else {
		var got *auth.FetchTokenResponse
		if got, err = auth.FetchToken(ctx, c.client, header, options); err == nil {
			token = got.Token
		}
	}
	if err != nil {
		return "", c.tokenError(realm.Host, err)
	}
	return token, nil
}

// tokenError turns the failure of a token server into one of ours. The errors of
// the library hold the URL with its query, and are not passed on.
func (c *checker) tokenError(host string, err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	var network *url.Error
	switch {
	case errors.As(err, &status):
	case errors.As(err, &network):
		return c.network(host, err)
	default: // no token in it, or no JSON
		return fmt.Errorf("%w: token server %s of %s gives no token", ErrRegistry, host, c.Registry)
	}
	switch code := status.StatusCode; {
	case code == http.StatusUnauthorized || code == http.StatusForbidden,
		code == http.StatusBadRequest && c.Auth.IdentityToken != "": // RFC 6749 §5.2, invalid_grant
		if c.Auth == (seal.RegistryAuth{}) {
			return c.denied(status.Status)
		}
		return fmt.Errorf("%w: token server %s refuses %v (%s)", ErrAuth, host, c.Auth, status.Status)
	case code == http.StatusTooManyRequests || code >= 500:
		return &temporaryError{error: fmt.Errorf("%w: token server %s of %s answered %s", ErrRegistry, host, c.Registry, status.Status)}
	}
	return fmt.Errorf("%w: token server %s of %s answered %s", ErrRegistry, host, c.Registry, status.Status)
}
