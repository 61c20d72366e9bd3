"""What `helm test` runs in the operator's image: are the CRDs served, is the operator ready, does the store work, can a site be planned?"""
