package main

import (
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
)

func subresources(s *session) {
	apps := s.typed.AppsV1().Deployments(s.namespace)
	core := s.typed.CoreV1()
	for _, e := range examples() {
		if e.kind == "Deployment" || e.kind == "Pod" {
			_, err := s.dynamic.Resource(e.resource).Namespace(s.namespace).Create(s.ctx, untyped(e, "sub"), metav1.CreateOptions{})
			s.tell("create a "+e.kind, nil, err)
		}
	}
	scale, err := apps.GetScale(s.ctx, "sub", metav1.GetOptions{})
	s.tell("get a scale", scale, err)
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		// A controller may be faster.
		if scale, err = apps.GetScale(s.ctx, "sub", metav1.GetOptions{}); err != nil {
			return err
		}
		scale.Spec.Replicas = 3
		scale, err = apps.UpdateScale(s.ctx, "sub", scale, metav1.UpdateOptions{})
		return err
	})
	s.tell("update a scale", scale, err)
	scale, err = apps.GetScale(s.ctx, "nothing", metav1.GetOptions{})
	s.tell("get the scale of none", scale, err)
	pod, err := core.Pods(s.namespace).Get(s.ctx, "sub", metav1.GetOptions{})
	if err == nil {
		pod.Status.Phase = corev1.PodRunning
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, Message: "tenancy/sub is ready"}}
		pod, err = core.Pods(s.namespace).UpdateStatus(s.ctx, pod, metav1.UpdateOptions{FieldManager: "kubelet"})
	}
	s.tell("update a pod's status", pod, err)
	pod, err = core.Pods(s.namespace).Patch(s.ctx, "sub", types.StrategicMergePatchType,
		[]byte(`{"status":{"conditions":[{"type":"Own","status":"True"}]}}`), metav1.PatchOptions{}, "status")
	s.tell("patch a pod's status", pod, err)
	if err == nil {
		pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "d"}}}
		pod, err = core.Pods(s.namespace).UpdateEphemeralContainers(s.ctx, "sub", pod, metav1.UpdateOptions{})
	}
	s.tell("update ephemeral containers", pod, err)
	binding := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "sub"}, Target: corev1.ObjectReference{Kind: "Node"}}
	s.tell("bind to no node", nil, core.Pods(s.namespace).Bind(s.ctx, binding, metav1.CreateOptions{}))
	eviction := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "sub", Namespace: s.namespace}, DeleteOptions: &metav1.DeleteOptions{DryRun: []string{"All"}}}
	s.tell("evict without effect", nil, core.Pods(s.namespace).EvictV1(s.ctx, eviction))
	eviction.DeleteOptions = &metav1.DeleteOptions{GracePeriodSeconds: ptr(int64(0)), Preconditions: metav1.NewUIDPreconditions("6f0a0d8c-58ab-4f7b-9f20-1c2d3e4f5a6b")}
	s.tell("evict another", nil, core.Pods(s.namespace).EvictV1(s.ctx, eviction))
	eviction.DeleteOptions = &metav1.DeleteOptions{GracePeriodSeconds: ptr(int64(0))}
	s.tell("evict", nil, core.Pods(s.namespace).EvictV1(s.ctx, eviction))
	eviction.Name = "nothing"
	s.tell("evict none", nil, core.Pods(s.namespace).EvictV1(s.ctx, eviction))
	s.tell("log of none", nil, core.Pods(s.namespace).GetLogs("nothing", &corev1.PodLogOptions{}).Do(s.ctx).Error())

	// One of its own: its managed fields tell who has done it.
	namespace, err := core.Namespaces().Create(s.ctx, namespaceNamed("tenancy-finalized"), metav1.CreateOptions{})
	if err == nil {
		namespace.Spec.Finalizers = append(namespace.Spec.Finalizers, "example.com/own")
		namespace, err = core.Namespaces().Finalize(s.ctx, namespace, metav1.UpdateOptions{})
		s.tell("finalize a namespace", namespace, err)
		if err == nil {
			namespace.Spec.Finalizers = []corev1.FinalizerName{corev1.FinalizerKubernetes}
			namespace, err = core.Namespaces().Finalize(s.ctx, namespace, metav1.UpdateOptions{})
			s.tell("finalize it again", namespace, err)
		}
	}
	s.reviews()
}

// reviews are what authenticators and authorizers in pods ask.
func (s *session) reviews() {
	accounts := s.typed.CoreV1().ServiceAccounts(s.namespace)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{"own"}, ExpirationSeconds: ptr(int64(900))}}
	token, err := accounts.CreateToken(s.ctx, "default", request, metav1.CreateOptions{})
	s.tell("request a token", token, err)
	if err == nil {
		for _, audiences := range [][]string{{"own"}, {"others", "own"}, {"others"}, nil} {
			review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token.Status.Token, Audiences: audiences}}
			reviewed, err := s.typed.AuthenticationV1().TokenReviews().Create(s.ctx, review, metav1.CreateOptions{})
			if err == nil {
				// It would be two tokens in one line.
				reviewed.Spec.Token = ""
			}
			s.tell("review it", reviewed, err)
		}
	}
	_, err = accounts.CreateToken(s.ctx, "nobody", request, metav1.CreateOptions{})
	s.tell("request nobody's token", nil, err)
	self, err := s.typed.AuthenticationV1().SelfSubjectReviews().Create(s.ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	s.tell("who am I", self, err)
	for _, attributes := range []authorizationv1.ResourceAttributes{
		{Namespace: s.namespace, Verb: "get", Resource: "pods"},
		{Verb: "list", Resource: "nodes"},
		{Verb: "*", Group: "*", Resource: "*"},
	} {
		own := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &attributes}}
		reviewed, err := s.typed.AuthorizationV1().SelfSubjectAccessReviews().Create(s.ctx, own, metav1.CreateOptions{})
		s.tell("may I", reviewed, err)
		others := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: "jane", Groups: []string{"team"}, ResourceAttributes: &attributes}}
		theirs, err := s.typed.AuthorizationV1().SubjectAccessReviews().Create(s.ctx, others, metav1.CreateOptions{})
		s.tell("may jane", theirs, err)
	}
	local := &authorizationv1.LocalSubjectAccessReview{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace},
		Spec: authorizationv1.SubjectAccessReviewSpec{
			User:               "system:serviceaccount:tenancy-other:default",
			Groups:             []string{"system:serviceaccounts", "system:serviceaccounts:tenancy-other"},
			ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: s.namespace, Verb: "create", Group: "apps", Resource: "deployments"},
		},
	}
	// The role binding was applied by the area before; without it the answer is another one, on both sides.
	there, err := s.typed.AuthorizationV1().LocalSubjectAccessReviews(s.namespace).Create(s.ctx, local, metav1.CreateOptions{})
	s.tell("may a service account of the other namespace", there, err)
}
