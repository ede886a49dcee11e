// Command rbac answers what Kubernetes' own RBAC would: each line of its input is a question in JSON, each line of its
// output the answer to the question of the same number. See README.md.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"

	"github.com/go-logr/logr"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/authorization/union"
	"k8s.io/apiserver/pkg/endpoints/filters/impersonation"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/registry/rbac/validation"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
)

// question holds what its other fields need of Policy and User, and exactly one of the others.
type question struct {
	Policy policy
	User   user.DefaultInfo

	Attributes    []authorizer.AttributesRecord
	RulesIn       *string
	Escalation    *escalation
	Impersonation *impersonated
	Defaults      bool
}

// escalation asks whether the user may grant rules, in a request for a resource in a namespace.
type escalation struct {
	Namespace string
	Resource  string
	Rules     []rbacv1.PolicyRule
}

// impersonated asks whom the user is treated as, in a request with these headers.
type impersonated struct {
	Method  string
	Target  string
	Headers [][2]string
}

// answer holds what was asked for.
type answer struct {
	Decisions []decision          `json:"decisions,omitempty"`
	Rules     []rbacv1.PolicyRule `json:"rules,omitempty"`
	Error     string              `json:"error,omitempty"`
	// User is whom the user is treated as.
	User *user.DefaultInfo `json:"user,omitempty"`
	// Code and Body are a refusal.
	Code     int     `json:"code,omitempty"`
	Body     string  `json:"body,omitempty"`
	Defaults *policy `json:"defaults,omitempty"`
}

type decision struct {
	Allowed bool   `json:"allowed"`
	Reason  string `json:"reason"`
}

// policy is all roles and bindings, each kind in the order in which it is to be looked at.
type policy struct {
	Roles               []*rbacv1.Role
	ClusterRoles        []*rbacv1.ClusterRole
	RoleBindings        []*rbacv1.RoleBinding
	ClusterRoleBindings []*rbacv1.ClusterRoleBinding
	// Resource is what a missing role is taken for; empty as the authorizer takes it.
	Resource string
}

func (p *policy) missing(resource, name string) error {
	if p.Resource != "" {
		resource = p.Resource
	}
	return apierrors.NewNotFound(rbacv1.Resource(resource), name)
}

func (p *policy) GetRole(_ context.Context, namespace, name string) (*rbacv1.Role, error) {
	for _, role := range p.Roles {
		if role.Namespace == namespace && role.Name == name {
			return role, nil
		}
	}
	return nil, p.missing("role", name)
}

func (p *policy) GetClusterRole(_ context.Context, name string) (*rbacv1.ClusterRole, error) {
	for _, role := range p.ClusterRoles {
		if role.Name == name {
			return role, nil
		}
	}
	return nil, p.missing("clusterrole", name)
}

func (p *policy) ListRoleBindings(_ context.Context, namespace string) ([]*rbacv1.RoleBinding, error) {
	var found []*rbacv1.RoleBinding
	for _, binding := range p.RoleBindings {
		if binding.Namespace == namespace {
			found = append(found, binding)
		}
	}
	return found, nil
}

func (p *policy) ListClusterRoleBindings(context.Context) ([]*rbacv1.ClusterRoleBinding, error) {
	return p.ClusterRoleBindings, nil
}

// authorizer is the one that a kube-apiserver has with --authorization-mode=RBAC.
func (p *policy) authorizer() authorizer.Authorizer {
	return union.New(
		authorizerfactory.NewPrivilegedGroups(user.SystemPrivilegedGroup),
		rbac.New(p, p, p, p),
	)
}

func main() {
	klog.SetLogger(logr.Discard())
	if err := answerAll(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "rbac:", err)
		os.Exit(1)
	}
}

func answerAll(questions io.Reader, answers io.Writer) error {
	decoder := json.NewDecoder(bufio.NewReader(questions))
	buffered := bufio.NewWriter(answers)
	encoder := json.NewEncoder(buffered)
	for {
		var asked question
		if err := decoder.Decode(&asked); errors.Is(err, io.EOF) {
			return buffered.Flush()
		} else if err != nil {
			return fmt.Errorf("the question is not valid JSON: %w", err)
		}
		answered, err := answerOne(&asked)
		if err != nil {
			return err
		}
		if err := encoder.Encode(answered); err != nil {
			return err
		}
	}
}

func answerOne(asked *question) (answer, error) {
	switch {
	case asked.Attributes != nil:
		return ofAttributes(asked)
	case asked.RulesIn != nil:
		return ofRules(asked), nil
	case asked.Escalation != nil:
		return ofEscalation(asked), nil
	case asked.Impersonation != nil:
		return ofImpersonation(asked)
	case asked.Defaults:
		return ofDefaults(), nil
	default:
		return answer{}, errors.New("a question holds none of Attributes, RulesIn, Escalation, Impersonation, Defaults")
	}
}

func ofAttributes(asked *question) (answer, error) {
	var answered answer
	asking := asked.Policy.authorizer()
	for _, attributes := range asked.Attributes {
		attributes.User = &asked.User
		decided, reason, err := asking.Authorize(context.Background(), attributes)
		if err != nil {
			return answer{}, err
		}
		allowed := decided == authorizer.DecisionAllow
		answered.Decisions = append(answered.Decisions, decision{Allowed: allowed, Reason: reason})
	}
	return answered, nil
}

func resolver(p *policy) validation.AuthorizationRuleResolver {
	return validation.NewDefaultRuleResolver(p, p, p, p)
}

func ofRules(asked *question) answer {
	rules, err := resolver(&asked.Policy).RulesFor(context.Background(), &asked.User, *asked.RulesIn)
	answered := answer{Rules: rules}
	if err != nil {
		answered.Error = err.Error()
	}
	return answered
}

func ofEscalation(asked *question) answer {
	asked.Policy.Resource = asked.Escalation.Resource
	ctx := request.WithUser(context.Background(), &asked.User)
	ctx = request.WithNamespace(ctx, asked.Escalation.Namespace)
	if err := validation.ConfirmNoEscalation(ctx, resolver(&asked.Policy), asked.Escalation.Rules); err != nil {
		return answer{Error: err.Error()}
	}
	return answer{}
}

func ofImpersonation(asked *question) (answer, error) {
	var treatedAs user.Info
	end := http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		treatedAs, _ = request.UserFrom(req.Context())
	})
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
	scheme.AddUnversionedTypes(metav1.Unversioned, &metav1.Status{})
	// One of its own for each question: it remembers what it allowed before.
	filter := impersonation.WithConstrainedImpersonation(
		end, asked.Policy.authorizer(), serializer.NewCodecFactory(scheme))

	req := httptest.NewRequest(asked.Impersonation.Method, asked.Impersonation.Target, nil)
	for _, header := range asked.Impersonation.Headers {
		req.Header.Add(header[0], header[1])
	}
	info, err := (&request.RequestInfoFactory{
		APIPrefixes:          sets.NewString("api", "apis"),
		GrouplessAPIPrefixes: sets.NewString("api"),
	}).NewRequestInfo(req)
	if err != nil {
		return answer{}, err
	}
	ctx := request.WithUser(request.WithRequestInfo(req.Context(), info), &asked.User)
	recorder := httptest.NewRecorder()
	filter.ServeHTTP(recorder, req.WithContext(ctx))
	if treatedAs == nil {
		return answer{Code: recorder.Code, Body: recorder.Body.String()}, nil
	}
	return answer{User: &user.DefaultInfo{
		Name:   treatedAs.GetName(),
		UID:    treatedAs.GetUID(),
		Groups: treatedAs.GetGroups(),
		Extra:  treatedAs.GetExtra(),
	}}, nil
}

// ofDefaults tells the roles and bindings that a kube-apiserver makes when it starts, but those of controllers.
func ofDefaults() answer {
	var defaults policy
	for _, role := range bootstrappolicy.ClusterRoles() {
		defaults.ClusterRoles = append(defaults.ClusterRoles, &role)
	}
	for _, binding := range bootstrappolicy.ClusterRoleBindings() {
		defaults.ClusterRoleBindings = append(defaults.ClusterRoleBindings, &binding)
	}
	for _, roles := range bootstrappolicy.NamespaceRoles() {
		for _, role := range roles {
			defaults.Roles = append(defaults.Roles, &role)
		}
	}
	for _, bindings := range bootstrappolicy.NamespaceRoleBindings() {
		for _, binding := range bindings {
			defaults.RoleBindings = append(defaults.RoleBindings, &binding)
		}
	}
	return answer{Defaults: &defaults}
}
