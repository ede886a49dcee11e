package main

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/pager"
)

func configMap(namespace, name string, more map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: more}}
}

// secretsIn creates secrets: a fresh cluster has none, so lists over all namespaces hold these alone.
func (s *session) secretsIn(namespace string, count int, more map[string]string) {
	for number := range count {
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("listed-%02d", number), Labels: more}}
		_, err := s.typed.CoreV1().Secrets(namespace).Create(s.ctx, secret, metav1.CreateOptions{})
		if err != nil {
			s.tell("create secret "+secret.Name, nil, err)
		}
	}
}

// pageOf is what is told of a list: all but the objects themselves.
type pageOf struct {
	Names     []string `json:"names"`
	More      bool     `json:"more"`
	Remaining *int64   `json:"remaining,omitempty"`
	// Same tells whether the page has the resource version of the first one.
	Same *bool `json:"same,omitempty"`
}

func (s *session) secrets(what, namespace string, options metav1.ListOptions) *corev1.SecretList {
	list, err := s.typed.CoreV1().Secrets(namespace).List(s.ctx, options)
	if err != nil {
		s.tell(what, nil, err)
		return nil
	}
	s.tell(what, pageOf{Names: names(list), More: list.Continue != "", Remaining: list.RemainingItemCount}, nil)
	return list
}

func lists(s *session) {
	more := map[string]string{"listed": "yes"}
	s.secretsIn(s.namespace, 7, more)
	s.secretsIn(s.other, 5, more)
	all := metav1.ListOptions{LabelSelector: "listed"}
	for _, namespace := range []string{s.namespace, ""} {
		where := "of one namespace"
		if namespace == "" {
			where = "of all namespaces"
		}
		s.pages(where, namespace)
		s.versions(where, namespace)
		s.secrets("by label "+where, namespace, all)
		for _, selector := range []string{"listed=yes", "listed!=yes", "listed in (yes,no)", "listed notin (yes)", "!listed", "listed,listed=no"} {
			s.secrets("by label "+selector+" "+where, namespace, metav1.ListOptions{LabelSelector: selector})
		}
		for _, selector := range []fields.Selector{
			fields.OneTermEqualSelector("metadata.name", "listed-03"),
			fields.OneTermNotEqualSelector("metadata.name", "listed-03"),
			fields.OneTermEqualSelector("metadata.namespace", s.other),
			fields.OneTermNotEqualSelector("metadata.namespace", s.other),
			fields.AndSelectors(
				fields.OneTermEqualSelector("metadata.namespace", s.other), fields.OneTermEqualSelector("metadata.name", "listed-01"),
			),
			fields.OneTermEqualSelector("type", string(corev1.SecretTypeOpaque)),
			fields.OneTermEqualSelector("nothing", "x"),
		} {
			s.secrets("by field "+selector.String()+" "+where, namespace, metav1.ListOptions{FieldSelector: selector.String()})
		}
	}
	for _, selector := range []string{"metadata.name=tenancy", "metadata.name!=tenancy", "status.phase=Active", "metadata.name=tenancy,status.phase=Terminating"} {
		list, err := s.typed.CoreV1().Namespaces().List(s.ctx, metav1.ListOptions{FieldSelector: selector, LabelSelector: "kubernetes.io/metadata.name in (tenancy,tenancy-other,default)"})
		if err != nil {
			s.tell("namespaces by field "+selector, nil, err)
			continue
		}
		s.tell("namespaces by field "+selector, names(list), nil)
	}
	s.pagers()
	// A version from the future is waited for, then refused. Nothing is tried again, or this would take long.
	err := s.typed.CoreV1().RESTClient().Get().Resource("secrets").MaxRetries(0).Param("resourceVersion", "999999999999").Do(s.ctx).Error()
	s.tell("a version from the future", []any{apierrors.IsTimeout(err), apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge)}, nil)
}

// pages goes through a list in pages of each size while it changes: all pages are of one moment.
func (s *session) pages(where, namespace string) {
	api := s.typed.CoreV1().Secrets(namespace)
	for _, limit := range []int64{1, 3, 5, 12, 100} {
		options := metav1.ListOptions{Limit: limit}
		first := ""
		for number := 1; ; number++ {
			what := fmt.Sprintf("page %d of %d %s", number, limit, where)
			list, err := api.List(s.ctx, options)
			if err != nil {
				s.tell(what, nil, err)
				break
			}
			page := pageOf{Names: names(list), More: list.Continue != "", Remaining: list.RemainingItemCount}
			if first == "" {
				first = list.ResourceVersion
			} else {
				page.Same = ptr(first == list.ResourceVersion)
			}
			s.tell(what, page, nil)
			if number == 1 && limit == 3 {
				// Later pages show what was there when the first one was read.
				late := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "listed-99", Labels: map[string]string{"late": "yes"}}}
				_, err := s.typed.CoreV1().Secrets(s.namespace).Create(s.ctx, late, metav1.CreateOptions{})
				s.tell("create between pages "+where, nil, err)
			}
			if list.Continue == "" || number > 20 {
				break
			}
			options = metav1.ListOptions{Limit: limit, Continue: list.Continue}
		}
	}
	s.tell("delete what was created between pages "+where, nil,
		s.typed.CoreV1().Secrets(s.namespace).Delete(s.ctx, "listed-99", metav1.DeleteOptions{}))
	// A page with a selector does not tell how many there are.
	list := s.secrets("page with a label "+where, namespace, metav1.ListOptions{LabelSelector: "listed", Limit: 2})
	if list != nil {
		s.secrets("second page with a label "+where, namespace, metav1.ListOptions{LabelSelector: "listed", Limit: 4, Continue: list.Continue})
		s.secrets("second page with another label "+where, namespace, metav1.ListOptions{LabelSelector: "nothing", Limit: 4, Continue: list.Continue})
		s.secrets("second page with a version "+where, namespace, metav1.ListOptions{Limit: 4, Continue: list.Continue, ResourceVersion: list.ResourceVersion})
		s.secrets("second page without a limit "+where, namespace, metav1.ListOptions{Continue: list.Continue})
		// It may be refused, or begin where this list would; but it tells nothing of the other kind.
		elsewhere, err := s.typed.CoreV1().ConfigMaps(namespace).List(s.ctx, metav1.ListOptions{Continue: list.Continue, LabelSelector: "listed"})
		s.tell("the token of another kind "+where, err != nil || len(elsewhere.Items) == 0, nil)
		broken := []byte(list.Continue)
		broken[len(broken)/2] ^= 1
		_, err = api.List(s.ctx, metav1.ListOptions{Continue: string(broken)})
		s.tell("a token with another bit "+where, apierrors.IsBadRequest(err) || apierrors.IsResourceExpired(err) || err == nil, nil)
	}
	forged := base64.RawURLEncoding.EncodeToString([]byte(`{"v":"meta.k8s.io/v1","rv":-1,"start":"../kube-system/\u0000"}`))
	_, err := api.List(s.ctx, metav1.ListOptions{Continue: forged})
	s.tell("a forged token is refused "+where, apierrors.IsBadRequest(err), nil)
}

// versions lists with each form of a resource version.
func (s *session) versions(where, namespace string) {
	before := s.secrets("before "+where, namespace, metav1.ListOptions{LabelSelector: "listed"})
	if before == nil {
		return
	}
	fresh := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "fresh", Labels: map[string]string{"listed": "fresh"}}}
	created, err := s.typed.CoreV1().Secrets(s.namespace).Create(s.ctx, fresh, metav1.CreateOptions{})
	if err != nil {
		s.tell("create a fresh one", nil, err)
		return
	}
	old, now := before.ResourceVersion, created.ResourceVersion
	for _, version := range []struct {
		what, version string
		match         metav1.ResourceVersionMatch
	}{
		{"the newest", "", ""},
		{"no older than then", now, ""},
		{"no older than then, said so", now, metav1.ResourceVersionMatchNotOlderThan},
		{"exactly before", old, metav1.ResourceVersionMatchExact},
		{"exactly then", now, metav1.ResourceVersionMatchExact},
		{"exactly at 0", "0", metav1.ResourceVersionMatchExact},
		{"exactly without a version", "", metav1.ResourceVersionMatchExact},
		{"an unknown match", now, "Sometimes"},
		{"no version", "x", ""},
	} {
		options := metav1.ListOptions{LabelSelector: "listed", ResourceVersion: version.version, ResourceVersionMatch: version.match}
		list := s.secrets(version.what+" "+where, namespace, options)
		if list == nil {
			continue
		}
		facts := map[string]bool{"notEarlier": number(list.ResourceVersion) >= number(version.version)}
		// Elsewhere it depends on who else has written to the cluster since.
		if version.match == metav1.ResourceVersionMatchExact {
			facts["exact"] = list.ResourceVersion == version.version
		}
		s.tell("the version of "+version.what+" "+where, facts, nil)
	}
	// Any version will do, so only that it is one is told.
	list, err := s.typed.CoreV1().Secrets(namespace).List(s.ctx, metav1.ListOptions{ResourceVersion: "0"})
	s.tell("any version "+where, err == nil && number(list.ResourceVersion) > 0, nil)
	list, err = s.typed.CoreV1().Secrets(namespace).List(s.ctx, metav1.ListOptions{ResourceVersion: "0", Limit: 1})
	s.tell("any version with a limit "+where, err == nil && number(list.ResourceVersion) > 0, nil)
	got, err := s.typed.CoreV1().Secrets(s.namespace).Get(s.ctx, "fresh", metav1.GetOptions{ResourceVersion: now})
	s.tell("get no older than then "+where, err == nil && number(got.ResourceVersion) >= number(now), nil)
	_, err = s.typed.CoreV1().Secrets(s.namespace).Get(s.ctx, "fresh", metav1.GetOptions{ResourceVersion: "x"})
	s.tell("get no version "+where, nil, err)
	s.tell("delete the fresh one", nil, s.typed.CoreV1().Secrets(s.namespace).Delete(s.ctx, "fresh", metav1.DeleteOptions{}))
}

func number(version string) int64 {
	parsed, err := strconv.ParseInt(version, 10, 64)
	if err != nil {
		return 0
	}
	return parsed
}

// pagers lists as controllers that page do.
func (s *session) pagers() {
	for _, namespace := range []string{s.namespace, ""} {
		api := s.typed.CoreV1().Secrets(namespace)
		lister := pager.New(pager.SimplePageFunc(func(options metav1.ListOptions) (runtime.Object, error) {
			return api.List(s.ctx, options)
		}))
		lister.PageSize = 2
		found := []string{}
		err := lister.EachListItem(s.ctx, metav1.ListOptions{LabelSelector: labels.Set{"listed": "yes"}.String()}, func(object runtime.Object) error {
			secret := object.(*corev1.Secret)
			found = append(found, secret.Namespace+"/"+secret.Name)
			return nil
		})
		s.tell("a pager of namespace '"+namespace+"'", strings.Join(found, " "), err)
	}
}
